"""The settings of pictures and videos, as transformers' processors read them.

Sources, in transformers' order: `processor_config.json`, where it has them; else the file of their own; for videos else
the file of images. What is written is the published form with every value in it. Steps that a runtime always takes are
expressed by numbers: without rescaling the factor is 1, without normalization mean and deviation are 0 and 1.

Knows settings; resizes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.models.auto.video_processing_auto import video_processor_class_from_name
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from ....contract import MOST_FORCED_PIXELS, Facts
from ....errors import CheckpointError
from .sources import Json, refuse, stored_json, to_bytes

IMAGES = "preprocessor_config.json"
VIDEOS = "video_preprocessor_config.json"
NESTED = {IMAGES: "image_processor", VIDEOS: "video_processor"}  # keys of processor_config.json
IMAGE_TYPES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
VIDEO_TYPE = "Qwen3VLVideoProcessor"
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC
ALWAYS = {"do_resize": True, "do_convert_rgb": True, "resample": BICUBIC}  # what every runtime does
# What the runtimes take where a file does not say.
READ = {**ALWAYS, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
READ_OF_VIDEOS = {
    **READ,
    "do_sample_frames": True,
    "fps": 2,
    "num_frames": None,
    "min_frames": 4,
    "max_frames": 768,
    "cap_pixels_per_frame": False,
    "max_video_tokens": 768,
}
OVERRIDES = ("min_pixels", "max_pixels")  # older names of `size`, which runtimes prefer and transformers may not


def read_images(root: Path, facts: Facts) -> bytes:
    """`preprocessor_config.json` with what `Qwen2VLImageProcessor` reads.

    Raises:
        CheckpointError: settings that transformers cannot read, or that no runtime follows.
    """
    where = source_of(root, IMAGES)
    with refuse(where, "settings of the image processor", f"Take {IMAGES} from the published checkpoint"):
        stored, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(root)
        kind = stored.get("image_processor_type") or IMAGE_TYPES[0]
        if kind not in IMAGE_TYPES:
            raise CheckpointError(f"{where}: image_processor_type is {kind!r}", f"Use {IMAGE_TYPES[0]}")
        processor = Qwen2VLImageProcessorPil.from_pretrained(root)
        values = common_values(processor, facts, where)
    types = {"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}
    return published(root, IMAGES, {**values, **types}, READ)


def read_videos(root: Path, facts: Facts) -> bytes:
    """`video_preprocessor_config.json` with what `Qwen3VLVideoProcessor` reads.

    Raises:
        CheckpointError: settings that transformers cannot read, or that no runtime follows.
    """
    where = source_of(root, VIDEOS)
    with refuse(where, "settings of the video processor", f"Take {VIDEOS} from the published checkpoint"):
        stored, _ = Qwen3VLVideoProcessor.get_video_processor_dict(root)
        kind = video_type(stored)
        if kind != VIDEO_TYPE:
            raise CheckpointError(
                f"{where}: transformers takes {kind} for videos",
                f"Set video_processor_type to {VIDEO_TYPE} in {VIDEOS}",
            )
        processor = Qwen3VLVideoProcessor.from_pretrained(root)
        values = common_values(processor, facts, where) | sampling_values(processor, where)
    types = {"processor_class": "Qwen3VLProcessor", "video_processor_type": VIDEO_TYPE}
    return published(root, VIDEOS, {**values, **types}, READ_OF_VIDEOS)


def source_of(root: Path, name: str) -> Path:
    """The file that transformers reads these settings from.

    Raises:
        CheckpointError: there is none.
    """
    nested = stored_json(root, "processor_config.json") or {}
    if NESTED[name] in nested:
        return root / "processor_config.json"
    if not (root / IMAGES).is_file() and not (root / name).is_file():
        raise CheckpointError(
            f"{root}: no {name}, and no {NESTED[name]} in processor_config.json",
            f"Take {name} from the published checkpoint",
        )
    return root / (IMAGES if name == VIDEOS and not (root / VIDEOS).is_file() else name)


def video_type(stored: Json) -> str:
    """The class that `AutoVideoProcessor` takes: the one named, one named like that of images, or the model's."""
    if stored.get("video_processor_type"):
        return str(stored["video_processor_type"])
    inferred = str(stored.get("image_processor_type")).replace("ImageProcessor", "VideoProcessor")
    return VIDEO_TYPE if video_processor_class_from_name(inferred) is None else inferred


def common_values(processor: Any, facts: Facts, where: Path) -> dict[str, Any]:
    """Size in pixels, patches, and how 8-bit values become floats.

    Raises:
        CheckpointError: a step that no runtime leaves out or adds, no pixel budget, or other patches than the config's.
    """
    for name, value in ALWAYS.items():
        if getattr(processor, name) != value:
            raise CheckpointError(
                f"{where}: {name} is {getattr(processor, name)!r}, runtimes do {value!r} only",
                f"Remove {name}, if pictures without it are what you want",
            )
    size = processor.size
    edges = (size.shortest_edge, size.longest_edge) if size else ()
    if not all(edges) or not edges or not edges[0] <= min(edges[1], MOST_FORCED_PIXELS):
        raise CheckpointError(
            f"{where}: size has no shortest_edge up to a longest_edge, in pixels of the whole picture, or one over "
            f"{MOST_FORCED_PIXELS}, to which every picture would be enlarged",
            "Take size from the published checkpoint",
        )
    patches = {name: getattr(processor, name) for name in ("patch_size", "temporal_patch_size", "merge_size")}
    built = (facts.patch_size, facts.temporal_patch_size, facts.spatial_merge_size)
    for (name, value), expected in zip(patches.items(), built, strict=True):
        if value != expected:
            raise CheckpointError(f"{where}: {name} is {value}, config.json says {expected}", f"Set it to {expected}")
    if processor.do_rescale and not processor.rescale_factor > 0:
        raise CheckpointError(f"{where}: rescale_factor is {processor.rescale_factor}", "Set it to 1 / 255")
    mean, deviation = (channel_values(getattr(processor, name), facts) for name in ("image_mean", "image_std"))
    if processor.do_normalize and (len({len(mean), len(deviation), facts.in_channels}) > 1 or 0 in deviation):
        raise CheckpointError(
            f"{where}: image_mean and image_std are not {facts.in_channels} numbers to normalize by",
            "Take them from the published checkpoint",
        )
    return {
        "size": {"longest_edge": int(size.longest_edge), "shortest_edge": int(size.shortest_edge)},
        **patches,
        "image_mean": mean if processor.do_normalize else [0.0] * facts.in_channels,
        "image_std": deviation if processor.do_normalize else [1.0] * facts.in_channels,
        **ALWAYS,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": float(processor.rescale_factor) if processor.do_rescale else 1.0,
    }


def channel_values(value: Any, facts: Facts) -> list[float]:
    """One number per channel; transformers takes a single one for all of them."""
    return [float(value)] * facts.in_channels if isinstance(value, int | float) else [float(each) for each in value]


def sampling_values(processor: Qwen3VLVideoProcessor, where: Path) -> dict[str, Any]:
    """Which frames of a video are seen, and how many pixels each may have.

    Raises:
        CheckpointError: settings with which transformers samples no video.
    """
    values: dict[str, Any] = {name: getattr(processor, name, None) for name in READ_OF_VIDEOS if name not in READ}
    if values["do_sample_frames"] and values["fps"] is not None and values["num_frames"] is not None:
        raise CheckpointError(
            f"{where}: num_frames is {values['num_frames']} and fps {values['fps']}, transformers takes only one",
            "Set fps to null, or remove num_frames",
        )
    if not 0 < values["min_frames"] <= values["max_frames"] or (values["fps"] is not None and not values["fps"] > 0):
        raise CheckpointError(
            f"{where}: fps, min_frames and max_frames allow no frame", "Take them from the published checkpoint"
        )
    return {**values, "cap_pixels_per_frame": bool(values["cap_pixels_per_frame"])}


def published(root: Path, name: str, values: Json, defaults: Json) -> bytes:
    """The stored file of that name if a runtime reads these values from it, else a new one.

    Args:
        defaults: what the runtimes take where a file does not say.
    """
    stored = stored_json(root, name)
    if stored is not None and not any(key in stored for key in OVERRIDES):
        read = {**defaults, **{key: value for key, value in stored.items() if key in values}}
        if all(read.get(key) == value for key, value in values.items() if not key.endswith(("_type", "_class"))):
            return (root / name).read_bytes()
    return to_bytes(values)
