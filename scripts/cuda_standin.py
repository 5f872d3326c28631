"""Make libraries in place of CUDA's, with which onnxruntime's CUDA provider starts on a machine without a GPU.

    pip install onnxruntime-gpu onnx; pip install --no-deps nvidia-cuda-runtime nvidia-cuda-crt
    python scripts/cuda_standin.py .../onnxruntime/capi/libonnxruntime_providers_cuda.so \\
        --headers .../nvidia/cu13/include OUT
    LD_LIBRARY_PATH=OUT python scripts/record_kernels.py CUDAExecutionProvider ARTIFACT...

For every function that the provider imports from CUDA there is one that does nothing and returns success; memory of the
device is memory of this process. So sessions open, weights are copied, and the provider's own code decides which nodes
it takes. **Nothing computes**: a run returns whatever is in memory.

Needs gcc, nm and readelf, and the headers of NVIDIA's packages `nvidia-cuda-runtime` and `nvidia-cuda-crt` in one
directory, for the layout of a structure.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import defaultdict
from pathlib import Path

ALLOCATE = "*(void **)a = aligned_alloc(256, (((size_t)b) + 255) / 256 * 256);"
FREE = "free((void *)a);"
COPY = "memmove((void *)a, (void *)b, (size_t)c);"
FILL = "memset((void *)a, (int)b, (size_t)c);"
HANDLE = "*(void **)a = malloc(64);"
BODIES = {  # of functions that must do something; a to c are their first three arguments
    **dict.fromkeys(("cudaMalloc", "cudaMallocHost", "cudaHostAlloc", "cudaMallocFromPoolAsync"), ALLOCATE),
    **dict.fromkeys(("cudaFree", "cudaFreeHost", "cudaFreeAsync"), FREE),
    **dict.fromkeys(("cudaMemcpy", "cudaMemcpyAsync"), COPY),
    **dict.fromkeys(("cudaMemset", "cudaMemsetAsync"), FILL),
    **dict.fromkeys(("cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaEventCreate", "cudaMemPoolCreate"), HANDLE),
    **dict.fromkeys(("cudaEventCreateWithFlags", "cudaLibraryLoadData", "cublasCreate_v2", "cublasLtCreate"), HANDLE),
    **dict.fromkeys(("cublasLtMatmulDescCreate", "cublasLtMatrixLayoutCreate"), HANDLE),
    "cublasLtMatmulPreferenceCreate": HANDLE,
    "cudaGetDeviceCount": "*(int *)a = 1;",
    "cudaGetDevice": "*(int *)a = 0;",
    "cudaDriverGetVersion": "*(int *)a = 13000;",
    "cudaRuntimeGetVersion": "*(int *)a = 13000;",
    "cudaMemGetInfo": "*(size_t *)a = *(size_t *)b = (size_t)64 << 30;",
    "cudaDeviceGetAttribute": "*(int *)a = (int)b == 75 ? 8 : (int)b == 76 ? 0 : 1;",  # compute capability 8.0
    "cudaGetDeviceProperties": "fill_properties((void *)a);",
    **dict.fromkeys(("cudaGetErrorString", "cudaGetErrorName"), 'return (long)"no CUDA";'),
    **dict.fromkeys(("cublasGetStatusString", "cublasGetStatusName"), 'return (long)"no CUDA";'),
}
PROPERTIES = """#include <string.h>
#include "driver_types.h"
void fill_properties(struct cudaDeviceProp *p) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "no GPU");
  p->major = 8;
  p->totalGlobalMem = (size_t)64 << 30;
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = p->sharedMemPerMultiprocessor = 166912;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxThreadsPerMultiProcessor = 2048;
  p->multiProcessorCount = 108;
  p->maxGridSize[0] = p->maxGridSize[1] = p->maxGridSize[2] = 65535;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("provider", type=Path, help="libonnxruntime_providers_cuda.so")
    parser.add_argument("out", type=Path, help="directory to write the libraries into")
    parser.add_argument("--headers", type=Path, required=True, help="directory with CUDA's driver_types.h")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for library, functions in imports(arguments.provider).items():
        compile_library(arguments.out, library, functions, arguments.headers)
        print(f"{arguments.out / library}: {len(functions)} functions")


def imports(provider: Path) -> dict[str, list[str]]:
    """CUDA's libraries that the provider is linked with -> the functions that it imports from each."""
    dynamic = run("readelf", "-d", provider)
    needed = [line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line]
    functions: dict[str, list[str]] = defaultdict(list, {name: [] for name in needed if name.startswith("libcu")})
    for line in run("nm", "-D", "--undefined-only", provider).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if library in functions or (not library and name.startswith("cu")):
            functions[library or "libcuda.so.1"].append(name)
    return functions


def compile_library(out: Path, library: str, functions: list[str], headers: Path) -> None:
    """Write a shared library with these functions, under the version that the provider asks for."""
    lines = ["#include <stdlib.h>", "#include <string.h>", "void fill_properties(void *p);"]
    for name in sorted(set(functions)):
        lines.append(f"long {name}(long a, long b, long c) {{ {BODIES.get(name, '')} return 0; }}")
    source = out / f"{library}.c"
    source.write_text("\n".join(lines) + "\n", "utf-8")
    options = ["-w", "-shared", "-fPIC", "-I", str(headers), f"-Wl,-soname,{library}"]
    sources = [str(source)]
    if "cudaGetDeviceProperties" in functions:
        properties = out / "properties.c"
        properties.write_text(PROPERTIES, "utf-8")
        sources.append(str(properties))
    if library != "libcuda.so.1":
        versions = out / f"{library}.map"
        versions.write_text(f"{library} {{ global: *; }};\n", "utf-8")
        options.append(f"-Wl,--version-script={versions}")
    run("gcc", *options, "-o", out / library, *sources)


def run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
