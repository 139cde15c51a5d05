"""The texts of the five prompts. `prompts.py` replaces a unit in braces, `{service.start}`, by the unit's tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """An argument of a prompt. `line` is the argument's line in the text, with `{}` in place of the value."""

    name: str
    about: str
    line: str
    required: bool = False


@dataclass(frozen=True)
class Recipe:
    """A prompt. Its text has the `aim`, a line for each argument, the numbered `steps`, and the `ending`."""

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
    about="Find a model that fits this machine, pull it, check it, serve it, and delete models that nobody needs.",
    aim="Get a model onto this machine, and keep the models in order.",
    arguments=(
        Argument("task", "What the model is needed for.", "The model is needed for: {}"),
        Argument("model_id", "Id of a model; default: the agent chooses a model that fits.", "The model: {}"),
    ),
    steps=(
        "List the models on this machine: {model.list}. Do not pull a model whose status is already `ready`.",
        "Check the free memory in bytes: {resource.budget}. Check the GPUs: {device.list}.",
        "Search for candidates: {model.search}. Without a GPU, prefer small models in a quantized format (GGUF, Q4 to "
        "Q8).",
        "Pull the model you chose: {model.pull} with its `source` and `repo`. The call returns when the model is "
        "`ready`.",
        "Before you serve the model, get the memory that it needs, {model.estimate_resources}, and compare it with the "
        "free memory.",
        "If a file may be damaged, compare the files with their checksum: {model.verify}.",
        "To serve the model: {service.recommend}, then {service.create} with the recommended values, then "
        "{service.start} with the `service_id` that was returned.",
        "To free disk space, delete a model and its files: {model.delete}. Do so only if the user agrees. AIMA refuses "
        "while a service uses the model.",
    ),
    ending="You are done when the model is `ready`. If the model must be served, its service must also be `running`.",
)

_INFERENCE = Recipe(
    name="inference",
    title="Ask a model",
    about="Choose a running model, start its service if needed, and ask it.",
    aim="Get an answer from a model on this machine.",
    arguments=(
        Argument("request", "What to ask the model.", "The request: {}"),
        Argument("model", "Id or name of a model or service; default: any running one.", "The model to use: {}"),
    ),
    steps=(
        "List the served models: {inference.models}. If no model is named, choose one whose `type` fits and whose "
        "`status` is `running`.",
        "If no served model fits: {service.list} also lists stopped services, and {service.start} starts a service.",
        "For a conversation: {inference.chat} with `model` and `messages`. Limit the length of the answer with "
        "`max_tokens`. The request wakes a sleeping service, which takes a moment.",
        "To continue a plain text: {inference.complete}.",
        "To turn texts into vectors: {inference.embed} with a model of type `embedding`.",
        "To order documents by how well they answer a query: {inference.rerank} with a model of type `rerank`.",
    ),
    ending="You are done when the model has answered. Report the answer and the name of the model.",
)

_RESOURCES = Recipe(
    name="resource_optimization",
    title="Make better use of the machine",
    about="Find unused memory reservations and services of the wrong size, and correct them.",
    aim="Find out how this machine's memory and accelerators are used, and improve their use.",
    arguments=(Argument("goal", "What matters: memory, throughput or latency.", "What matters most: {}"),),
    steps=(
        "Check how much memory the machine has and how much memory is reserved: {resource.status} and "
        "{resource.budget}.",
        "Check who holds the reservations: {resource.allocations}.",
        "Check the devices: {device.list}, {device.metrics}, {device.health}.",
        "Check the load of each service: {inference.load} and {inference.metrics}.",
        "For a service with a low or high load, get the recommended configuration: {service.recommend}.",
        "Make one change at a time: {service.scale} with fewer replicas, or with more replicas if "
        "{resource.can_allocate} says that they fit. 0 replicas put a service to sleep until the next request.",
        "Check the effect of the change: {resource.status} and {inference.load}.",
    ),
    ending="You are done when no further change would help. Report each change with the figures before and after it.",
)

_TROUBLE = Recipe(
    name="troubleshooting",
    title="Find out what is wrong",
    about="Find out why a service does not run or answer. Read its status, history and logs.",
    aim="Find out what is wrong, and fix the problem.",
    arguments=(
        Argument("service_id", "Id of a service; default: all services with problems.", "The service: {}"),
        Argument("symptom", "What was observed, such as an error message.", "What was observed: {}"),
    ),
    steps=(
        "If no service is named, list the services: {service.list}. Begin with `failed` or `degraded` services.",
        "Check the status and the last error of each replica: {service.status}. Its `summary` says what to do.",
        "Read the service's events: {service.history}. Begin where the service was last `running`.",
        "Read the logs of the service's engines: {service.logs}. The cause is usually in the last lines.",
        "For a single engine: {engine.list}, and {engine.logs} for one instance.",
        "Check whether there is enough memory: {resource.can_allocate} and {resource.allocations}. The error "
        "INSUFFICIENT_RESOURCES names the holders of the memory.",
        "Check the devices: {device.health}.",
        "Check the model's files for damage: {model.verify}.",
        "Start the service after you have removed the cause: {service.start}. A replica that hangs is replaced "
        "automatically.",
    ),
    ending="You are done when the service is `running` and answers. Report the cause, the evidence for the cause, and "
    "what you did.",
)

_PIPELINES = Recipe(
    name="pipelines",
    title="Chain several steps",
    about="Turn a goal into a chain of calls, in which each call uses the result of the previous call.",
    aim="Reach a goal in several steps, in which each step uses the result of the previous step.",
    arguments=(Argument("goal", "The result that you want.", "The goal: {}", required=True),),
    steps=(
        "List the served models, to see which of them can do each step: {inference.models}.",
        "Speech to text: {inference.transcribe}.",
        "Search texts by meaning: {inference.embed}, then {inference.rerank}.",
        "Read or summarize a text, or decide something from a text: {inference.chat}. If the next step needs fields, "
        "ask for JSON with `response_format`.",
        "Text to speech: {inference.synthesize}.",
        "Text to image: {inference.generate_image}.",
    ),
    ending="You are done when the last step has returned the result. Report the input and the output of each step.",
)

RECIPES: Mapping[str, Recipe] = {each.name: each for each in (_MODELS, _INFERENCE, _RESOURCES, _TROUBLE, _PIPELINES)}
