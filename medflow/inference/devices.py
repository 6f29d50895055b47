"""Which device a model runs on, and what its errors mean."""

from __future__ import annotations

from medflow.errors import CaseError, ConfigurationError, DeviceExhausted, MedflowError, TransientError, place_of


def resolve_device(wanted: str) -> str:
    """The torch device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises
    ------
    ConfigurationError
        The device is not there; names the ones that are.
    """
    if wanted == "cpu":
        return "cpu"
    try:
        import torch
    except ModuleNotFoundError:
        if wanted == "auto":
            return "cpu"  # a model without torch
        raise ConfigurationError(f"MEDFLOW_DEVICE is {wanted}, but torch is not installed") from None
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        available.append("mps")
    if wanted == "auto":
        return next((name for name in available if name != "cpu"), "cpu")
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in available:
        raise ConfigurationError(f"MEDFLOW_DEVICE is {wanted}; this machine has: {', '.join(available)}")
    return name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device (or the host) has no memory left for this batch."""
    if isinstance(error, MemoryError):
        return True
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def free_cache(device: str) -> None:
    """Give blocks that torch keeps for later back to the device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
    elif device == "mps":
        import torch

        torch.mps.empty_cache()


def as_medflow_error(error: Exception) -> MedflowError:
    """Any error of a plugin in medflow's terms: the data's fault, or the infrastructure's.

    The text of a foreign error may quote what it was given, so only its type and place are kept.
    """
    if isinstance(error, (CaseError, TransientError)):
        return error
    if is_out_of_memory(error):
        return DeviceExhausted("the device has no memory left for a single case of this model")
    where = place_of(error)
    kind = type(error).__name__
    if isinstance(error, (OSError, ConnectionError, TimeoutError)) or "Accelerator" in kind:
        return TransientError(f"{kind} at {where}")
    return CaseError("plugin-error", f"the model raised {kind} at {where}")
