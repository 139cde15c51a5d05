"""Guesses the type of a model from names in its header. A caller may declare another type."""

from __future__ import annotations

from collections.abc import Collection

from services.model.units import ModelType

RANK_POOLING = 4  # llama.h: LLAMA_POOLING_TYPE_RANK; 1 to 3 pool to an embedding, 0 does not pool

GGUF_TYPES: dict[str, ModelType] = {
    "whisper": "asr",
    "mllama": "vlm",
    "gemma-embedding": "embedding",
    "t5encoder": "embedding",
    "wavtokenizer-dec": "tts",
    "outetts": "tts",
    "kokoro": "tts",
    "orpheus": "tts",
    "parler-tts": "tts",
    "dia": "tts",
    "flux": "diffusion",
    "sd1": "diffusion",
    "sd3": "diffusion",
    "sdxl": "diffusion",
    "lumina2": "diffusion",
    "qwen_image": "diffusion",
    "hidream": "diffusion",
    "aura": "diffusion",
    "wan": "diffusion",
    "ltxv": "diffusion",
    "cosmos": "diffusion",
}

# A class has the type of the first entry that its name contains, so narrower entries come first.
CLASS_TYPES: tuple[tuple[str, ModelType], ...] = (
    ("TextToSpeech", "tts"),
    ("Vits", "tts"),
    ("ParlerTTS", "tts"),
    ("Bark", "tts"),
    ("Kokoro", "tts"),
    ("Whisper", "asr"),
    ("SpeechToText", "asr"),
    ("SpeechSeq2Seq", "asr"),
    ("ForCTC", "asr"),
    ("ForObjectDetection", "detection"),
    ("Detr", "detection"),
    ("Yolo", "detection"),
    ("ForSequenceClassification", "rerank"),
    ("Pipeline", "diffusion"),
    ("UNet", "diffusion"),
    ("Transformer2DModel", "diffusion"),
    ("Llava", "vlm"),
    ("VL", "vlm"),
    ("Vision2Seq", "vlm"),
    ("ImageTextToText", "vlm"),
    ("ForCausalLM", "llm"),
    ("LMHeadModel", "llm"),
    ("T5ForConditionalGeneration", "llm"),
    ("ForConditionalGeneration", "vlm"),
    ("ForMaskedLM", "embedding"),
    ("BertModel", "embedding"),
    ("RobertaModel", "embedding"),
    ("Model", "embedding"),
)


def gguf_type(architecture: str, pooling: int | None, rank_head: bool, projector: bool) -> ModelType:
    """Return the type of a GGUF model from its architecture, its pooling and its tensors."""
    if pooling == RANK_POOLING or rank_head:
        return "rerank"
    if architecture in GGUF_TYPES:
        return GGUF_TYPES[architecture]
    if pooling or "bert" in architecture:
        return "embedding"
    return "vlm" if projector or architecture.endswith(("vl", "vlmoe")) else "llm"


def class_type(architectures: Collection[str]) -> ModelType | None:
    """Return the type for the class names of a config.json; None if no name is known."""
    for name in architectures:
        for part, kind in CLASS_TYPES:
            if part in name:
                return kind
    return None


def tensor_type(names: Collection[str]) -> ModelType:
    """Return the type for the tensor names of a file without a config.json."""
    if any(part in name for name in names for part in ("diffusion_model.", "double_blocks.", "down_blocks.")):
        return "diffusion"
    if any(name.startswith(("visual.", "vision_model.", "vision_tower.")) for name in names):
        return "vlm"
    if any("embeddings.word_embeddings" in name for name in names):
        return "rerank" if any(name.startswith("classifier.") for name in names) else "embedding"
    return "llm"


def onnx_type(inputs: Collection[str], outputs: Collection[str]) -> ModelType:
    """Return the type for the inputs and outputs of a graph; detection if they are unknown."""
    if any(name.startswith("past_key_values") for name in inputs):
        return "llm"
    if {"input_features", "mel", "audio", "audio_signal"} & set(inputs):
        return "asr"
    if {"phonemes", "style", "speed", "scales", "x_lengths"} & set(inputs):
        return "tts"
    if {"timestep", "t"} & set(inputs) and {"sample", "hidden_states", "latents"} & set(inputs):
        return "diffusion"
    if {"input_ids", "pixel_values"} <= set(inputs):
        return "vlm"
    if "input_ids" in inputs:
        return "rerank" if set(outputs) == {"logits"} else "embedding"
    return "detection"
