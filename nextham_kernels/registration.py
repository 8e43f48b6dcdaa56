"""Makes an op of kernels and a reference: schema, fake, autograd. The only user of `torch.library`.

An op `nextham::<name>` is a function of tensors and of plain settings (numbers, words). torch's dispatcher chooses by
device: on the CPU the C++ kernel runs, on CUDA the GPU kernel, its module imported at the first call; on other devices,
where there is no GPU kernel, and with `NEXTHAM_KERNELS=reference` the reference. Its backward is the op
`nextham::<name>_backward`, also with kernels; the derivative of that one, which second derivatives need, is the
derivative of the reference, or of a multilinear op a composition of both kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nextham_kernels.loading import gpu_kernel, interpreted, reference_only

__all__ = ["GPU_KERNELS", "define"]

GPU_KERNELS: dict[str, str] = {}
"""Op, such as `nextham::gate_backward` → function of its GPU kernel, such as `gate.kernel.backward`."""


def define(
    name: str,
    schema: str,
    reference: Callable[..., torch.Tensor],
    forward: Callable[..., torch.Tensor],
    backward: Callable[..., list[torch.Tensor]] | None,
    fake: Callable[..., torch.Tensor] | None = None,
    linear_part: Callable[..., tuple] | None = None,
    gradient: Callable[..., tuple] | None = None,
    vmap: tuple[Callable, Callable] | None = None,
    gpu: tuple[str, ...] = (),
) -> Callable[..., torch.Tensor]:
    """Registers `nextham::<name>` and its backward, and returns the op.

    Args:
        name: the op's name.
        schema: its arguments, tensors first, such as `Tensor x, Tensor weight, str irreps, float eps`. Tensors of
            indices have no gradient.
        reference: the op in plain torch, with exactly these arguments.
        forward: the CPU kernel, with exactly these arguments; called with contiguous tensors without gradient.
        backward: the CPU kernel of the derivative: (grad of the result, arguments …, needs) → gradient of each tensor;
            `needs` says which are wanted, the others may be empty tensors. None: the reference's derivative.
        fake: returns an empty result of the right shape, with exactly these arguments; by default the reference, which
            must not read tensors other than its arguments then.
        linear_part: of an op that is linear in each of its tensors, or constant: (i, settings …) → settings that leave
            only what is linear in the i-th. Derivatives of any order are then compositions of the op and of its
            backward, instead of the reference's from the second on.
        gradient: the derivative as a composition of ops: (grad of the result, arguments …) → gradient of each tensor.
            There is no backward op then, and derivatives of any order exist.
        vmap: the rules of `torch.library.register_vmap` for the op and for its backward.
        gpu: the GPU kernel and, if there is one, that of the derivative, as functions of modules inside `ops`, such as
            `("gate.kernel.forward", "gate.kernel.backward")`, with the arguments of `forward` and of `backward`. They
            are called with contiguous tensors without gradient, all on the current device.

    Returns:
        The op; any derivative with respect to its tensors up to second order exists.
    """
    n_tensors = sum(argument.split()[0] == "Tensor" for argument in schema.split(","))
    op_name, backward_name = f"nextham::{name}", f"nextham::{name}_backward"

    def keep(ctx: object, inputs: tuple, output: object) -> None:
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.settings = inputs[len(tensors) :]

    torch.library.define(op_name, f"({schema}) -> Tensor")
    _implement(op_name, reference, forward, gpu[:1])
    torch.library.register_fake(op_name, fake or reference)
    op = getattr(torch.ops.nextham, name)
    if gradient:

        def pull_composed(ctx: object, grad: torch.Tensor) -> tuple:
            return (*gradient(grad, *ctx.saved_tensors, *ctx.settings), *(None for _ in ctx.settings))

        torch.library.register_autograd(op_name, pull_composed, setup_context=keep)
        return op

    torch.library.define(backward_name, f"(Tensor grad, {schema}, bool[] needs) -> Tensor[]")

    def reference_backward(*args: object) -> list[torch.Tensor]:
        return _reference_gradient(reference, args[:-1], n_tensors)

    _implement(backward_name, reference_backward, backward or reference_backward, gpu[1:])
    op_backward = getattr(torch.ops.nextham, f"{name}_backward")

    torch.library.register_fake(backward_name, lambda grad, *args: [torch.empty_like(t) for t in args[:n_tensors]])

    def pull(ctx: object, grad: torch.Tensor) -> tuple:
        needs = list(ctx.needs_input_grad[:n_tensors])
        grads = op_backward(grad, *ctx.saved_tensors, *ctx.settings, needs)
        kept = (g if need else None for g, need in zip(grads, needs, strict=True))
        return (*kept, *(None for _ in ctx.settings))

    def pull_again(ctx: object, grads2: Sequence[torch.Tensor]) -> tuple:
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
            grads = _reference_gradient(reference, (*tensors, *ctx.settings[:-1]), n_tensors)
            pairs = [(g, g2) for g, g2 in zip(grads, grads2, strict=True) if g2 is not None and g.requires_grad]
            leaves = [t for t in tensors if t.requires_grad]
            outputs, cotangents = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outputs, leaves, cotangents, allow_unused=True))
        return (*(next(found) if t.requires_grad else None for t in tensors), *(None for _ in ctx.settings))

    def pull_multilinear(ctx: object, grads2: Sequence[torch.Tensor]) -> tuple:
        grad, *tensors = ctx.saved_tensors
        *settings, had = ctx.settings
        wanted = ctx.needs_input_grad[1 : n_tensors + 1]
        grad2_grad, found = None, [None] * n_tensors
        for i, grad2 in enumerate(grads2):
            if grad2 is None or not had[i]:
                continue
            # ⟨grad, f_i(…, grad2_i, …)⟩ is what this cotangent adds to the loss, f_i being the part linear in tensor i.
            replaced = [*tensors[:i], grad2, *tensors[i + 1 :], *linear_part(i, *settings)]
            needs = [want and j != i for j, want in enumerate(wanted)]
            if ctx.needs_input_grad[0]:
                grad2_grad = _sum(grad2_grad, op(*replaced))
            if any(needs):
                pulled = op_backward(grad, *replaced, needs)
                found = [_sum(f, g) if need else f for f, g, need in zip(found, pulled, needs, strict=True)]
        return (grad2_grad, *found, *(None for _ in ctx.settings))

    if vmap:
        torch.library.register_vmap(op_name, vmap[0])
        torch.library.register_vmap(backward_name, vmap[1])
    torch.library.register_autograd(op_name, pull, setup_context=keep)
    torch.library.register_autograd(backward_name, pull_multilinear if linear_part else pull_again, setup_context=keep)
    return op


def _implement(op_name: str, reference: Callable, cpu: Callable, gpu: tuple[str, ...]) -> None:
    """Gives the dispatcher what runs on each device."""

    def on_cpu(*args: object) -> object:
        if reference_only():
            return reference(*args)
        if not interpreted():
            return cpu(*_contiguous(args)) if cpu is not reference else reference(*args)
        # What a GPU would run; CuPy has no interpreter.
        return gpu_kernel(gpu[0])(*_contiguous(args)) if gpu and ".kernel." in gpu[0] else reference(*args)

    def on_cuda(*args: object) -> object:
        if reference_only() or not gpu:
            return reference(*args)
        with torch.cuda.device_of(args[0]):
            return gpu_kernel(gpu[0])(*_contiguous(args))

    torch.library.impl(op_name, "default", reference)
    torch.library.impl(op_name, "cpu", on_cpu)
    torch.library.impl(op_name, "cuda", on_cuda)
    if gpu:
        GPU_KERNELS[op_name] = gpu[0]


def _sum(a: torch.Tensor | None, b: torch.Tensor) -> torch.Tensor:
    return b if a is None else a + b


def _contiguous(args: Sequence[object]) -> list[object]:
    return [x.detach().contiguous() if isinstance(x, torch.Tensor) else x for x in args]


def _reference_gradient(
    reference: Callable[..., torch.Tensor], args: Sequence[object], n_tensors: int
) -> list[torch.Tensor]:
    """Gradients of the reference with respect to its tensors, for args = (grad, tensors …, settings …).

    By torch.func, because an op's implementation runs below autograd; where there is a graph, it goes on.
    """
    grad, *rest = args
    floating = [i for i, t in enumerate(rest[:n_tensors]) if t.is_floating_point()]

    def of_floating(*tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(floating, tensors, strict=True))
        return reference(*(given.get(i, x) for i, x in enumerate(rest)))

    pull = torch.func.vjp(of_floating, *(rest[i] for i in floating))[1]
    found = dict(zip(floating, pull(grad), strict=True))
    # A copy: the result of an op must not be its argument.
    return [found[i].clone() if i in found else torch.zeros_like(t) for i, t in enumerate(rest[:n_tensors])]
