"""Makes an op of kernels and a reference: schema, fake, autograd. The only user of `torch.library`.

An op `nextham::<name>` is a function of tensors and of plain settings (numbers, words). torch's dispatcher chooses by
device: on the CPU the C++ kernel runs, on CUDA the GPU kernel, its module imported at the first call; on other devices,
where there is no GPU kernel, and with `NEXTHAM_KERNELS=reference` the reference. Its backward is the op
`nextham::<name>_backward`, also with kernels; the derivative of that one, which second derivatives need, is the
derivative of the reference, or of a multilinear op a composition of both kernels.

Under `torch.autocast` an op computes in the precision of its tensors, float32 or float64; tensors in half are refused.

Plain CPU tensors outside any transformation of torch go to the kernel directly, with an autograd node of their own:
passing the dispatcher takes longer than a small kernel (30 µs of 47 for ten rows of a tensor product, more with
gradients). Compilation, vmap, fake tensors and modes such as FLOP counters see the registered operator as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nextham_kernels.loading import gpu_kernel, interpreted, reference_only

__all__ = ["GPU_KERNELS", "GPU_ORDERS", "define"]

GPU_KERNELS: dict[str, str] = {}
"""Op, such as `nextham::gate_backward` → function of its GPU kernel, such as `gate.kernel.backward`."""

GPU_ORDERS: dict[str, tuple[str, str, str]] = {}
"""Op → what serves it, its derivative and that one's on a GPU: `triton`, `cupy`, `composed`, `reference`."""


def define(
    name: str,
    schema: str,
    reference: Callable[..., torch.Tensor],
    forward: Callable[..., torch.Tensor],
    backward: Callable[..., list[torch.Tensor]] | None,
    fake: Callable[..., torch.Tensor] | None = None,
    linear_part: Callable[..., tuple] | None = None,
    gradient: Callable[..., tuple] | None = None,
    vmap: tuple[Callable, Callable] | str | None = None,
    gpu: tuple[str, ...] = (),
    terms: Callable[[int, list[torch.Tensor]], list[torch.Tensor | None]] | None = None,
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
        vmap: the rules of `torch.library.register_vmap` for the op and for its backward; or "rows", if each row of its
            result comes of the same row of all its tensors: a mapped axis becomes rows.
        gpu: the GPU kernel and, if there is one, that of the derivative, as functions of modules inside `ops`, such as
            `("gate.kernel.forward", "gate.kernel.backward")`, with the arguments of `forward` and of `backward`. They
            are called with contiguous tensors without gradient, all on the current device.
        terms: instead of `linear_part`, of an op that is a sum of products of its tensors, each at most once in a
            product: (i, tensors) → the tensors that leave only the terms with the i-th: as they are, cut to their first
            rows, or None for zeros where they do not occur in these terms.

    Returns:
        The op; any derivative with respect to its tensors up to second order exists. Its `backward` is the backward op,
        for those who compose derivatives themselves.
    """
    n_tensors = sum(argument.split()[0] == "Tensor" for argument in schema.split(","))
    op_name, backward_name = f"nextham::{name}", f"nextham::{name}_backward"

    def keep(ctx: object, inputs: tuple, output: object) -> None:
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.settings = inputs[len(tensors) :]

    torch.library.define(op_name, f"({schema}) -> Tensor")
    run = _implement(op_name, reference, forward, gpu[:1])
    torch.library.register_fake(op_name, fake or reference)
    registered = getattr(torch.ops.nextham, name)
    own, derived = (_kind(gpu[i : i + 1]) for i in range(2))
    GPU_ORDERS[name] = (own, "composed", "composed") if gradient else (own, derived, "reference")
    if (linear_part or terms) and "reference" not in (own, derived):
        GPU_ORDERS[name] = (own, derived, "composed")
    if gradient:

        def pull_composed(ctx: object, grad: torch.Tensor) -> tuple:
            return (*gradient(grad, *ctx.saved_tensors, *ctx.settings), *(None for _ in ctx.settings))

        torch.library.register_autograd(op_name, pull_composed, setup_context=keep)
        if vmap:
            torch.library.register_vmap(op_name, _mapped_rows(registered))
        return _direct(registered, run, keep, pull_composed, n_tensors)

    torch.library.define(backward_name, f"(Tensor grad, {schema}, bool[] needs) -> Tensor[]")

    def reference_backward(*args: object) -> list[torch.Tensor]:
        return _reference_gradient(reference, args[:-1], n_tensors)

    run_backward = _implement(backward_name, reference_backward, backward or reference_backward, gpu[1:])
    registered_backward = getattr(torch.ops.nextham, f"{name}_backward")
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
            # ⟨grad, f_i(…, grad2_i, …)⟩ is what this cotangent adds to the loss, f_i being the terms with tensor i.
            kept, parts = [*tensors[:i], grad2, *tensors[i + 1 :]], settings
            if linear_part:
                parts = linear_part(i, *settings)
            else:
                kept = terms(i, kept)
            replaced = [*(torch.zeros_like(t) if k is None else k for k, t in zip(kept, tensors, strict=True)), *parts]
            needs = [want and j != i and kept[j] is not None for j, want in enumerate(wanted)]
            if ctx.needs_input_grad[0]:
                grad2_grad = _sum(grad2_grad, op(*replaced))
            if any(needs):
                pulled = op_backward(grad, *replaced, needs)
                pulled = (
                    _of_rows(g, t.shape[0]) if need else g for g, t, need in zip(pulled, tensors, needs, strict=True)
                )
                found = [_sum(f, g) if need else f for f, g, need in zip(found, pulled, needs, strict=True)]
        return (grad2_grad, *found, *(None for _ in ctx.settings))

    if vmap:
        rules = (_mapped_rows(registered), _mapped_rows(registered_backward)) if vmap == "rows" else vmap
        torch.library.register_vmap(op_name, rules[0])
        torch.library.register_vmap(backward_name, rules[1])
    pull_backward = pull_multilinear if linear_part or terms else pull_again
    op = _direct(registered, run, keep, pull, n_tensors)
    op_backward = _direct(registered_backward, run_backward, keep, pull_backward, n_tensors + 1, listed=True)
    torch.library.register_autograd(op_name, pull, setup_context=keep)
    torch.library.register_autograd(backward_name, pull_backward, setup_context=keep)
    op.backward = op_backward
    return op


def _direct(
    registered: Callable, run: Callable, keep: Callable, pull: Callable, n_tensors: int, listed: bool = False
) -> Callable:
    """The operator, called without the dispatcher where nothing but autograd has to know of the call.

    Args:
        registered: the operator of `torch.ops`.
        run: what the dispatcher would call for tensors on the CPU.
        keep: sets up the context of its derivative.
        pull: its derivative.
        n_tensors: the number of its tensors, which come first.
        listed: the result is a list of tensors.
    """

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, *args: object) -> object:
            ctx.set_materialize_grads(False)
            keep(ctx, args, None)
            found = run(*args)
            return tuple(found) if listed else found

        @staticmethod
        def backward(ctx: object, *grads: torch.Tensor | None) -> tuple:
            if all(grad is None for grad in grads):
                return (None,) * len(ctx.needs_input_grad)
            return pull(ctx, grads if listed else grads[0])

    def call(*args: object) -> object:
        if torch.compiler.is_compiling() or not _plain(args[:n_tensors]):
            return registered(*args)
        if torch.is_grad_enabled() and any(t.requires_grad for t in args[:n_tensors]):
            found = Node.apply(*args)
            return list(found) if listed else found
        return run(*args)

    return call


def _plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are plain tensors on the CPU, outside transformations, modes and traces of torch."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) and t.is_cpu for t in tensors)
    )


def _kind(gpu: tuple[str, ...]) -> str:
    return "reference" if not gpu else "triton" if ".kernel." in gpu[0] else "cupy"


def _implement(op_name: str, reference: Callable, cpu: Callable, gpu: tuple[str, ...]) -> Callable:
    """Gives the dispatcher what runs on each device; returns what runs on the CPU."""

    def on_cpu(*args: object) -> object:
        if reference_only():
            return reference(*args)
        if not interpreted():
            return cpu(*_contiguous(args)) if cpu is not reference else reference(*args)
        # What a GPU would run; CuPy has no interpreter.
        return gpu_kernel(gpu[0])(*_contiguous(args)) if gpu and ".kernel." in gpu[0] else reference(*args)

    on_cpu = _outside_autocast("cpu", on_cpu)
    on_cuda = _outside_autocast("cuda", _on_cuda(reference, gpu))
    torch.library.impl(op_name, "default", reference)
    torch.library.impl(op_name, "cpu", on_cpu)
    torch.library.impl(op_name, "cuda", on_cuda)
    if gpu:
        GPU_KERNELS[op_name] = gpu[0]
    return on_cpu


def _on_cuda(reference: Callable, gpu: tuple[str, ...]) -> Callable:
    def run(*args: object) -> object:
        if reference_only() or not gpu:
            return reference(*args)
        with torch.cuda.device_of(args[0]):  # Triton launches on the current device
            return gpu_kernel(gpu[0])(*_contiguous(args))

    return run


def _outside_autocast(device: str, run: Callable) -> Callable:
    """The same in the precision of its tensors: under `torch.autocast` products inside it would be in half."""

    def exact(*args: object) -> object:
        if not torch.is_autocast_enabled(device):
            return run(*args)
        with torch.autocast(device, enabled=False):
            return run(*args)

    return exact


def _mapped_rows(registered: Callable) -> Callable:
    """The rule of `vmap` for an operator on rows: the mapped axis in front of them becomes rows."""

    def rule(info: object, in_dims: tuple, *args: object) -> tuple:
        size = info.batch_size
        moved = [
            (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            if isinstance(x, torch.Tensor)
            else x
            for x, dim in zip(args, in_dims, strict=True)
        ]
        found = registered(*moved)
        if isinstance(found, torch.Tensor):
            return found.unflatten(0, (size, -1) if len(found) else (size, 0)), 0
        return [t.unflatten(0, (size, -1) if t.shape[0] else (size, 0)) for t in found], [0] * len(found)

    return rule


def _of_rows(grad: torch.Tensor, n: int) -> torch.Tensor:
    """The gradient of n rows from that of the first ones."""
    return grad if grad.shape[0] == n else torch.cat([grad, grad.new_zeros(n - grad.shape[0], *grad.shape[1:])])


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
