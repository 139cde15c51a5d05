"""What the five prompts say: data for `prompts.py`. A unit in braces, `{service.start}`, becomes its tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """Something that a prompt may be told. `said` is how it stands in the text."""

    name: str
    about: str
    said: str
    required: bool = False


@dataclass(frozen=True)
class Recipe:
    """A prompt: `aim` and what the arguments say begin it, `steps` follow, `ending` says when it is done."""

    name: str
    title: str
    about: str
    aim: str
    arguments: tuple[Argument, ...]
    steps: tuple[str, ...]
    ending: str


_MODELS = Recipe(
    name="model_management",
    title="Manage models",
    about="Find a model that fits this machine, fetch it, check it, serve it, and tidy up.",
    aim="Get a model onto this machine, and keep the models in order.",
    arguments=(
        Argument("task", "What the model shall do.", "It shall do this: {}"),
        Argument("model_id", "Id of a model; default: whichever fits.", "The model: {}"),
    ),
    steps=(
        "See what is here already: {model.list}. A model that is `ready` need not be fetched again.",
        "See what there is room for: {resource.budget} in bytes, and {device.list} for the GPUs.",
        "Look for candidates: {model.search}. Without a GPU prefer small ones in a quantized format (GGUF, Q4 to Q8).",
        "Fetch the chosen one: {model.pull} with its `source` and `repo`. It answers when the model is ready.",
        "Know what it needs before it is served: {model.estimate_resources}, held against the budget.",
        "If a file may be damaged: {model.verify} holds it against its checksum.",
        "To serve it: {service.recommend}, then {service.create}, then {service.start} with the id that it gave.",
        "Tidy up, only with the user's word: {model.delete} removes a model and its files; refused while it is used.",
    ),
    ending="Done when the model is `ready` and, if it was to be served, its service is `running`.",
)

_INFERENCE = Recipe(
    name="inference",
    title="Ask a model",
    about="Choose a model that is served, ask it, and start what is needed for that.",
    aim="Have a model on this machine answer.",
    arguments=(
        Argument("request", "What to ask the model.", "The request: {}"),
        Argument("model", "Model or service; default: one that runs.", "The model to use: {}"),
    ),
    steps=(
        "See what is served: {inference.models}. If no model is named, take one whose `type` fits and whose `status` "
        "is `running`.",
        "If nothing that fits is served: {service.list} shows services that are stopped, {service.start} starts one.",
        "Talk: {inference.chat} with `model` and `messages`; bound the answer with `max_tokens`. A service that sleeps "
        "is woken by that, and may take a moment.",
        "To continue a plain text instead: {inference.complete}.",
        "For vectors of texts: {inference.embed} with a model of type `embedding`.",
        "To order documents by a question: {inference.rerank} with a model of type `rerank`.",
    ),
    ending="Done when the model has answered: give its answer, and say which model gave it.",
)

_RESOURCES = Recipe(
    name="resource_optimization",
    title="Make better use of the machine",
    about="Find memory that is held without need and services that are too large or too small, and put that right.",
    aim="Find out how this machine's memory and accelerators are used, and use them better.",
    arguments=(Argument("goal", "What matters: memory, throughput or latency.", "What matters most: {}"),),
    steps=(
        "What there is, and how much of it is reserved: {resource.status} and {resource.budget}.",
        "Who holds it: {resource.allocations}.",
        "How the devices do: {device.list}, {device.metrics}, {device.health}.",
        "What is asked for, by service: {inference.load} and {inference.metrics}.",
        "What would suit a service better that is asked little, or much: {service.recommend}.",
        "Change one thing at a time: {service.scale} with fewer replicas (0 lets it sleep until somebody asks), or "
        "with more where {resource.can_allocate} says that there is room.",
        "Look again: {resource.status} and {inference.load}. Is it better?",
    ),
    ending="Done when a further change would not help: report each change with the figures before and after it.",
)

_TROUBLE = Recipe(
    name="troubleshooting",
    title="Find out what is wrong",
    about="Find out why a service does not run or answer: from its status, its history and its engines' logs.",
    aim="Find out what is wrong, and put it right.",
    arguments=(
        Argument("service_id", "Id of a service; default: whichever is not well.", "The service: {}"),
        Argument("symptom", "What was seen, such as an error message.", "What was seen: {}"),
    ),
    steps=(
        "If no service is named, find it: {service.list}; look at those first that are `failed` or `degraded`.",
        "How each of its replicas is, and what to do about it: {service.status}.",
        "What has happened to it: {service.history}. Read on from where it last was `running`.",
        "What its engines wrote: {service.logs}, the last lines first.",
        "An engine by itself: {engine.list}, and {engine.logs} for one instance.",
        "Is there room: {resource.can_allocate} and {resource.allocations}. INSUFFICIENT_RESOURCES names who holds "
        "what is missing.",
        "Is the machine well: {device.health}.",
        "Are the model's files whole: {model.verify}.",
        "When the cause is gone: {service.start}. A replica that hangs is replaced by itself.",
    ),
    ending="Done when the service is `running` and answers: report the cause, the evidence for it, and what you did.",
)

_PIPELINES = Recipe(
    name="pipelines",
    title="Chain several steps",
    about="Turn a goal into a chain of calls, each of which takes what the one before it gave.",
    aim="Reach a goal in several steps, each taking what the one before it gave.",
    arguments=(Argument("goal", "What shall come out.", "The goal: {}", required=True),),
    steps=(
        "See which models can do a step each: {inference.models}.",
        "Speech becomes text: {inference.transcribe}.",
        "Texts are found by meaning: {inference.embed}, then {inference.rerank}.",
        "Text is read, summarized, decided on: {inference.chat}; ask for JSON with `response_format` where the next "
        "step needs fields.",
        "Text becomes speech: {inference.synthesize}.",
        "Text becomes a picture: {inference.generate_image}.",
    ),
    ending="Done when the last step has given the result: report what each step took and gave.",
)

RECIPES: Mapping[str, Recipe] = {each.name: each for each in (_MODELS, _INFERENCE, _RESOURCES, _TROUBLE, _PIPELINES)}
