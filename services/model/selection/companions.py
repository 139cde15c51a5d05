"""The files that belong to the weights of a model: configuration, tokenizer, and the data of an ONNX graph."""

from __future__ import annotations

from services.model.headers.candidates import Candidate
from services.model.headers.safetensors_files import INDEX, PIPELINE, index_of
from services.model.paths.folder_walk import children, folders
from services.model.selection.listed_path import ListedPath

SUFFIXES = (".json", ".jinja", ".model", ".txt")
MAX_SIZE = 256 << 20  # bytes of one configuration or tokenizer file
VOCABULARY_TEXTS = ("vocab.txt", "merges.txt")  # other text files are documentation


def companions(root: ListedPath, candidate: Candidate[ListedPath]) -> list[ListedPath]:
    """Return the files beside the weights and in the folders above them; of a pipeline, those of all its folders."""
    if candidate.known.alone:
        return []
    home = candidate.files[0].parent if not candidate.known.folders else candidate.path
    if (home / PIPELINE).is_file():
        places = [folder for _, folder in folders(home)]
    else:
        places = [type(root)(root.listing, home.parts[:depth]) for depth in range(len(home.parts) + 1)]
    indexes = {index.key for file in candidate.files if (index := index_of(file))}
    chosen = {file.key for file in candidate.files}
    files = [file for place in places for file in children(place) if file.is_file() and file.key not in chosen]
    return [file for file in files if file.key in indexes or _belongs(file, candidate)]


def _belongs(file: ListedPath, candidate: Candidate[ListedPath]) -> bool:
    if candidate.known.name == "onnx" and file.name.startswith(f"{candidate.path.name}"):
        return file.name.removeprefix(candidate.path.name).startswith((".data", "_data"))
    if not file.name.endswith(SUFFIXES) or file.name.endswith((INDEX, ".index.json")):
        return False
    return (not file.name.endswith(".txt") or file.name in VOCABULARY_TEXTS) and file.stat().st_size <= MAX_SIZE
