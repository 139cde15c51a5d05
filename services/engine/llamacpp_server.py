"""Serves one GGUF model with llama.cpp's own OpenAI-compatible server, as a process of its own.

    python -m services.engine.llamacpp_server --model FILE --alias NAME --port PORT

It imports nothing of AIMA, so that it starts fast and stays small. Stdout and stderr are the log of the instance.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

import xllamacpp


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, which breaks off what is under way (exit code 0). Return 1 if the model cannot be served."""
    options = _parser().parse_args(arguments)
    if not os.path.isfile(options.model):
        return _refuse(f"there is no model file {options.model}")
    # Loading is one long call that no handler of ours could interrupt: until it is done, SIGTERM just ends us.
    try:
        server = xllamacpp.Server(_parameters(options))
    except RuntimeError as error:
        return _refuse(f"{options.model} cannot be served: {error} The lines above say why.")
    _say(f"serving {options.alias} at {server.listening_address}")
    _wait_for(signal.SIGTERM, signal.SIGINT)
    _say("stopping")
    # Ended in order, the server waits for a stream under way until it is next written to: half a minute was seen.
    # There is nothing to save, the system takes back memory and sockets, and clients see that the answer broke off.
    os._exit(0)


def _wait_for(*numbers: signal.Signals) -> None:
    # The signal may be handed to any thread of the server, which would not wake this one. The byte in the pipe does.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    os.read(reader, 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llamacpp_server", description="One GGUF model behind an OpenAI API.")
    parser.add_argument("--model", required=True, help="the GGUF file")
    parser.add_argument("--alias", required=True, help="the name that requests call the model by")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context-length", type=int, default=4096, help="tokens, for each slot")
    parser.add_argument("--slots", type=int, default=4, help="requests worked on at once")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--prompt-cache-mib", type=int, default=0, help="memory for prompts that may come again")
    parser.add_argument("--gpu-layers", type=int, default=-1, help="layers on the GPU; -1: as many as fit")
    parser.add_argument("--embedding", action="store_true", help="serve embeddings instead of text")
    parser.add_argument("--pooling", choices=("mean", "cls", "last"), help="default: as the model says")
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
    # llama.cpp would take up to 8 GiB for this over time, which nobody has reserved.
    parameters.cache_ram_mib = options.prompt_cache_mib
    parameters.endpoint_metrics = parameters.endpoint_slots = parameters.endpoint_props = True
    parameters.use_jinja = True
    parameters.ui = False
    parameters.offline = True  # it serves this file and fetches nothing
    parameters.cors_origins = ""  # by default any web page in a browser on this machine may use the model
    parameters.embedding = options.embedding
    if options.embedding:
        # An embedding is made of a whole text at once, so that the batch must hold all of it.
        parameters.n_batch = parameters.n_ubatch = options.context_length
    if options.pooling:
        parameters.pooling_type = xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{options.pooling.upper()}"]
    return parameters


def _say(line: str) -> None:
    sys.stderr.write(f"llamacpp_server: {line}\n")
    sys.stderr.flush()


def _refuse(line: str) -> int:
    _say(line)
    return 1


if __name__ == "__main__":
    sys.exit(main())
