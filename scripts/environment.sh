# Sourced by the scripts that need .venv: goes to the root of the project, sets .venv up and puts its programs first.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup
export PATH="$PWD/.venv/bin:$PATH" PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY=PASSIVE # idle worker threads sleep instead of spinning: two libraries' pools share the cores
