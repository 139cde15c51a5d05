"""Serves one GGUF model with llama.cpp's OpenAI-compatible server. Runs as a separate process.

    python -m services.engine.llamacpp_server --model FILE --alias NAME --port PORT

The program must not import other modules of AIMA, so that it starts fast and uses little memory. Its stdout and stderr
are the log of the instance.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import xllamacpp


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then exit with code 0. Return 1 if the model cannot be served.

    The signal aborts running requests.
    """
    options = _parser().parse_args(arguments)
    if not os.path.isfile(options.model):
        return _refuse(f"there is no model file {options.model}")
    # Loading is one long call that a Python signal handler cannot interrupt, so SIGTERM keeps its default action: kill.
    try:
        server = xllamacpp.Server(_parameters(options))
    except RuntimeError as error:
        return _refuse(f"{options.model} cannot be served: {error} See the lines above for the cause.")
    _report(f"serving {options.alias} at {server.listening_address}")
    _wait_for(signal.SIGTERM, signal.SIGINT)
    _report("stopping")
    # An orderly shutdown waits up to half a minute, until the server next writes to each running stream. There is no
    # data to save. The system frees memory and sockets, and clients see that their answer breaks off.
    os._exit(0)


def _wait_for(*numbers: signal.Signals) -> None:
    # The signal may reach another thread, which does not wake this thread. The byte in the pipe wakes it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    os.read(reader, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llamacpp_server", description="Serve one GGUF model with an OpenAI-compatible API."
    )
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--alias", required=True, help="the model's name in requests")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-length", type=int, default=4096, help="tokens per slot")
    parser.add_argument("--slots", type=int, default=4, help="requests processed at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prompt-cache-mib", type=int, default=0, help="memory for a cache of earlier prompts")
    parser.add_argument("--gpu-layers", type=int, default=-1, help="layers on the GPU; -1: as many as fit")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings instead of text")
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls", "last"),
        help="how token vectors become one embedding; default: as the model states",
    )
    return parser


def _parameters(options: argparse.Namespace) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = options.model
    parameters.model_alias = {options.alias}
    parameters.hostnames = [options.host]
    parameters.port = options.port
    parameters.n_parallel = options.slots
    parameters.n_ctx = options.context_length * options.slots  # llama.cpp counts the context of all slots together
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.n_gpu_layers = options.gpu_layers
    # llama.cpp's default cache grows up to 8 GiB, but the instance has not reserved this memory.
    parameters.cache_ram_mib = options.prompt_cache_mib
    parameters.endpoint_metrics = parameters.endpoint_slots = parameters.endpoint_props = True
    parameters.use_jinja = True
    parameters.ui = False
    parameters.offline = True  # serve this file only, download nothing
    parameters.cors_origins = ""  # the default allows any web page in a browser on this machine to use the model
    parameters.embedding = options.embedding
    if options.embedding:
        # llama.cpp embeds a text in one pass, so the batch must be as large as the longest text.
        parameters.n_batch = parameters.n_ubatch = options.context_length
    if options.pooling:
        parameters.pooling_type = xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{options.pooling.upper()}"]
    return parameters


def _report(line: str) -> None:
    sys.stderr.write(f"llamacpp_server: {line}\n")
    sys.stderr.flush()


def _refuse(line: str) -> int:
    _report(line)
    return 1


if __name__ == "__main__":
    sys.exit(main())
