"""The trainable parameters of a transform other than blocks, and the operator computed from them."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError
from orthotune.kernels.autograd import looked_through, wrapped
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.parametrization.sharding import Exchanged
from orthotune.rotation.family import FamilyTransform, Sizes, wide
from orthotune.rotation.operator import Blended, Operator, mapped, quicker
from orthotune.rotation.spec import RotationSpec
from orthotune.rotation.strength import FULL, Strength


class _Untrained(torch.autograd.Function):
    """A part of a power, whose gradient is not known: a backward says so instead of leaving the gradient out."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, weight: Tensor, what: str) -> Tensor:
        ctx.what = what
        return part.view_as(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        raise ConfigError(
            f"training the transform {ctx.what}", needed="strength 1",
            do="Call set_scale(adapter, 1) before training, or set_scale(adapter, t, kind='linear')",
        )  # fmt: skip


class Together(Protocol):
    """Transforms that are computed together; see ``family_group.py``."""

    def renew(self, first: FamilyRotation) -> None:
        """Compute the operators of all members, ``first`` among them, and keep them in their memos."""

    def connect(self, first: FamilyRotation) -> None:
        """One autograd node for the members that were computed in one batch with ``first``."""


class FamilyRotation(Exchanged):
    """Stored parameters ``weight`` ``(copies * rows, elements)`` of one adapter at one matrix.

    To a layer it is what :class:`~orthotune.layers.parametrization.rotation.Rotation` is, with an operator in the place
    of the tensor of blocks. The operator is computed when the stored parameters or the basis have changed, those of
    many layers in one batch; that of a transform with a basis, or of a stack, with its gradient in every forward of a
    training step.

    ``basis`` holds the frozen numbers of a transform that has some, None for all others.

    Args:
        kind: the transform.
        sizes: of one matrix.
        spec: with the sizes that were chosen.
        copies: number of matrices of one shape that are mapped (the experts of a mixture), 1 otherwise.
    """

    basis: Tensor | None
    _basis_seen = False

    def __init__(self, kind: type[FamilyTransform], sizes: Sizes, spec: RotationSpec, copies: int = 1) -> None:
        super().__init__()
        self.kind, self.layout, self.spec, self.copies = kind, sizes, spec, copies
        self.memo = Memo()
        self._strength = FULL
        rows, elements = sizes.shape
        self.weight = nn.Parameter(torch.zeros(copies * rows, elements, dtype=spec.dtype))
        shape = (sizes.block_count, sizes.features) if copies == 1 else (copies, sizes.block_count, sizes.features)
        # A buffer: hosts make every parameter of an active adapter a trained one.
        self.register_buffer("basis", torch.zeros(shape, dtype=spec.dtype) if kind.needs_basis else None)
        #: transforms that are computed in one batch with this one
        self.group: Together | None = None

    @property
    def strength(self) -> Strength:
        """How strongly the adapter acts."""
        return self._strength

    @strength.setter
    def strength(self, strength: Strength) -> None:
        self._strength = strength
        self.memo.drop("miss: another strength")

    def forward(self, every_block: bool = False) -> Operator:
        """The operator at the present strength; ``every_block`` is for blocks, of which some may be dropped."""
        weight, basis = self.weight, self.basis
        if torch.is_grad_enabled() and weight.requires_grad:
            return self._with_gradient()
        if torch.compiler.is_compiling():
            return self.compute()
        if looked_through() and (wrapped(weight) or (basis is not None and wrapped(basis))):
            return self.compute()
        return self.known()

    def known(self) -> Operator:
        """The operator without a gradient, from the memo while parameter and basis are unchanged."""
        found: Operator | None = self.memo.get(self.weight, "R", self.basis)
        if found is not None:
            return found
        made = self._made()
        with torch.inference_mode(False), torch.no_grad():
            found = quicker(self.compute() if made is None else made)
            if made is None:
                self.memo.keep(self.weight, self.weight.detach().clone(), self.basis, R=found)
            else:
                self.memo.add(R=found)
        return found

    def _made(self) -> Operator | None:
        """The operator from the batch of its group, without a gradient; None where it is computed by itself."""
        if self.group is None or self.strength.partial or not Memo.can_hold(self.weight):
            return None
        kept = self.memo.get(self.weight, "made")
        if kept is None:
            with torch.autocast(self.weight.device.type, enabled=False):
                self.group.renew(self)
            kept = self.memo.peek("made")
        return None if kept is None else kept[1].at(kept[2])

    def _with_gradient(self) -> Operator:
        if torch.compiler.is_compiling() or looked_through() or self._made() is None:
            return self.compute()
        node = self.node()
        if node is None:
            assert self.group is not None
            self.group.connect(self)
            node = self.node()
        return self.compute() if node is None else node

    def node(self) -> Operator | None:
        """The operator with the gradient to the present parameter, if a training step has asked for it before."""
        kept = self.memo.peek("node")
        return kept[1] if kept is not None and kept[0] is self.weight else None

    def served(self) -> Operator | None:
        """What a call like this one gave last, without a look at the parameter; its owner looks when it uses it."""
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self.node()
        found: Operator | None = self.memo.peek("R")
        return found

    def current(self) -> Operator | None:
        """What a call like this one gives if it is cached, None if it is stale."""
        self.memo.get(self.weight, "R", self.basis)  # drops what is stale
        return self.served()

    def compute(self) -> Operator:
        """The operator at the present strength, with its gradient.

        At a geodesic strength other than 1 its backward is an error.
        """
        strength = self.strength
        if not strength.partial:
            return self.at_full_strength()
        if strength.kind != "geodesic":
            return Blended(self.at_full_strength(), strength.t)
        found = self.power(strength.t)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            what = f"'{self.spec.transform}' at strength {strength.t:g}"
            found = mapped(found, lambda part: _Untrained.apply(part, self.weight, what))
        return found

    def shares(self, trained: bool) -> bool:
        """Whether the operator is blocks along the diagonal, so that layers of one input multiply with it together."""
        if trained and self.group is None and Memo.can_hold(self.weight):
            return False  # a copy of a module: nothing says whether what another layer computes for it is stale
        return self.copies == 1 and not self.strength.partial and self.kind.written_out(self.spec, trained)

    def power(self, t: float) -> Operator:
        """``M^t``, without a gradient.

        Raises:
            OrthotuneError: there is no such power.
        """
        return self.kind.raised(self.spec, self._by_matrix(wide(self.weight.detach())), t, self._known_basis())

    @property
    def lacks_basis(self) -> bool:
        """Whether the basis is still 0: the weight was not in memory, and no file has brought the basis."""
        return self.basis is not None and self.basis.device.type != "meta" and not bool(self.basis.any())

    def _known_basis(self) -> Tensor | None:
        """The basis, which is looked at once: with zeros the map would be the identity whatever its parameters are."""
        if self.basis is None or torch.compiler.is_compiling() or looked_through() or self._basis_seen:
            return self.basis
        if self.lacks_basis:
            raise ConfigError(
                f"the transform '{self.spec.transform}'", got="no basis: the weight was not in memory at its creation",
                needed="the weight, whose singular vectors are the basis",
                do="Create the adapter before the model is offloaded, or load an adapter whose file has the basis",
            )  # fmt: skip
        self._basis_seen = self.basis.device.type != "meta"
        return self.basis

    def _by_matrix(self, v: Tensor) -> Tensor:
        return v if self.copies == 1 else v.view(self.copies, -1, v.shape[-1])

    def at_full_strength(self) -> Operator:
        """The operator at strength 1, with its gradient."""
        return self.kind.operator_of(
            self.spec, self._by_matrix(wide(self.weight)), self._known_basis(), looked_through()
        )

    def frozen_transform(self, magnitude: Tensor | None, embedding: bool) -> FamilyTransform:
        """This map with its present parameters, as files hold it."""
        return self.kind(self.spec, self.weight.detach(), magnitude, embedding=embedding, basis=self.basis)

    @torch.no_grad()
    def factors(self) -> Tensor:
        """Blocks ``(n, b, b)`` with the angles of the map at strength 1; what they leave out is at rest."""
        return self.kind.factors_of(self.spec, wide(self.weight.detach()), self.basis)

    def project(self) -> None:
        """COFT is a constraint of blocks: nothing to do."""

    def _apply(self, *args: Any, **kwargs: Any) -> FamilyRotation:
        self.memo.drop("miss: the parameter has another device or dtype")
        return super()._apply(*args, **kwargs)

    def _replicate_for_data_parallel(self) -> FamilyRotation:
        replica = super()._replicate_for_data_parallel()
        replica.memo, replica.group = Memo(), None
        return replica

    def __getstate__(self) -> dict[str, Any]:
        # A copy computes for itself: its group would bring the entire model along.
        return {**self.__dict__, "memo": Memo(), "group": None, "shard": None}

    def extra_repr(self) -> str:
        return f"{self.spec.transform}={self.weight.shape[0] // self.copies}x{self.weight.shape[1]}"
