"""The server's side of one window of secure aggregation, as a state machine.

Uploads are added up as they come, so it holds one vector whatever the cohort's size. It is driven in one of
two ways, which mix: by its own `close_*` decisions, or by adopting decisions that were recorded before, in
their order, while it reads the same inputs again. Both lead to the same sum; the gate uses the second.
"""

from __future__ import annotations

from typing import NoReturn, TypeVar

import numpy as np

from echelon.errors import ProtocolError
from echelon.messages.envelope import verify_signature
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Deliver,
    Included,
    KeyEntry,
    KeyList,
    Sealed,
    SealedShare,
    SharesList,
    SignatureEntry,
    Signatures,
    Unmask,
    Upload,
)
from echelon.messages.wire import DeviceId, Message, Reason
from echelon.secagg.context import Context, consistency_statement, masks_bound
from echelon.secagg.decisions import DECIDES, Decision, Round, check_enough, signed_enough, thriving
from echelon.secagg.faults import InputRefused, WindowFailed
from echelon.secagg.keys import usable
from echelon.secagg.partial_sums import over_rank_blocks
from echelon.secagg.prg import ALONE, Masker, RingVector, Spread
from echelon.secagg.roster import Roster
from echelon.secagg.unmasking import SumResult, Unmasking

_D = TypeVar("_D", KeyList, SharesList, Included, Signatures)


class Server:
    """One window's aggregation.

    `on_*` take inputs and raise `InputRefused` for what is no valid input (the state is as before); identical
    repeats are ignored, of differing ones the first counts. `close_*` decide a round and raise `WindowFailed`
    when too few are left; `adopt` takes a recorded decision instead, and raises `ProtocolError` for one that
    no honest server could have made. Nothing but its window's number is taken from a message without a check.

    Args:
        context: what the window is bound to.
        roster: the enrolled devices, already verified.
        spread: how masks are taken off: alone, or by threads that the caller has.
    """

    def __init__(self, context: Context, roster: Roster, spread: Spread = ALONE) -> None:
        self._masker = Masker(spread)
        strangers = [device for device in context.weights if device not in roster]
        if strangers:
            raise ProtocolError(
                f"window {context.window}: {strangers[0]} is not on the roster; enrol it first"
            )
        self.context = context
        self.round = Round.KEYS
        self._roster = roster
        self._adverts: dict[DeviceId, KeyEntry] = {}
        self._sealed: dict[DeviceId, Sealed] = {}
        self._uploads: dict[DeviceId, bytes] = {}
        self._total: RingVector = np.zeros(context.length, context.dtype)
        self._signatures: dict[DeviceId, bytes] = {}
        self._keys: dict[DeviceId, KeyEntry] = {}
        self._bound = b""
        self._shares = SharesList(window=context.window, devices=())
        self._u2: frozenset[DeviceId] = frozenset()
        self._u3: dict[DeviceId, bytes] = {}
        self._statement = b""
        self._unmasking = Unmasking(context)
        self._decisions: dict[Round, Decision] = {}
        self._result: SumResult | None = None

    # ---- inputs ----------------------------------------------------------------------------------

    def on_advertise(self, device: DeviceId, message: Advertise) -> None:
        """Round 0: a device's keys."""
        self._check_window(device, message)
        entry = KeyEntry(
            device=device,
            cipher_public=message.cipher_public,
            mask_public=message.mask_public,
            seed_commitment=message.seed_commitment,
            evaluated=message.evaluated,
            front=message.front,
            back=message.back,
            signature=message.signature,
        )
        known = self._adverts if self.round is Round.KEYS else self._keys
        if self._is_repeat(device, known.get(device), entry, "keys"):
            return
        if self.round is not Round.KEYS:
            self._late(device, "keys")
        if not verify_signature(
            self._roster.key(device), entry.signature, self.context.advert_statement(entry)
        ):
            raise InputRefused(Reason.BAD_SIGNATURE, f"the keys of {device} are not signed for this window")
        taken = {key for other in self._adverts.values() for key in (other.cipher_public, other.mask_public)}
        if {entry.cipher_public, entry.mask_public} & taken or entry.cipher_public == entry.mask_public:
            raise InputRefused(Reason.PROTOCOL, f"{device} advertises a key that is in use already")
        if not (usable(entry.cipher_public) and usable(entry.mask_public)):
            raise InputRefused(Reason.PROTOCOL, f"{device} advertises a key of low order")
        self._adverts[device] = entry

    def on_sealed(self, device: DeviceId, message: Sealed) -> None:
        """Round 1: a device's sealed shares."""
        self._check_window(device, message)
        if self._is_repeat(device, self._sealed.get(device), message, "shares"):
            return
        if self.round > Round.SHARES and device in self._u2:
            return  # read again after a restart; what was handed over then stands on the inbox
        if self.round is not Round.SHARES or device not in self._keys:
            self._late(device, "shares")
        if [entry.device for entry in message.entries] != sorted(
            self.context.neighbours[device] & set(self._keys)
        ):
            raise InputRefused(Reason.PROTOCOL, f"{device} sealed shares for others than its neighbours")
        self._sealed[device] = message

    def on_masked(self, device: DeviceId, vector: RingVector, sha256: bytes) -> None:
        """Round 2: a masked vector is added to the sum. The caller has checked that `sha256` is its digest.

        Args:
            device: the sender.
            vector: uint32[length], or uint16[length] on the ring of 16 bits; not kept.
            sha256: of its little-endian bytes.
        """
        self._check_member(device)
        if self.round > Round.MASKED:
            wanted = self._u3.get(device)
            if wanted is None:
                self._late(device, "upload")
            if wanted != sha256:
                raise InputRefused(Reason.FORK, f"{device} sent another upload than the one that is included")
        if self._is_repeat(device, self._uploads.get(device), sha256, "upload"):
            return
        if self.round < Round.MASKED or device not in self._u2:
            self._late(device, "upload")
        if not self.context.fits(vector):
            raise InputRefused(
                Reason.BAD_FIELD,
                f"{device} sent {vector.dtype}{list(vector.shape)}, not {self.context.dtype}[{self.context.length}]",
            )
        np.add(self._total, vector, out=self._total)
        self._uploads[device] = sha256

    def on_consistency(self, device: DeviceId, message: Consistency) -> None:
        """Round 3: a device's signature over U3."""
        self._check_window(device, message)
        if self.round < Round.CONSISTENCY or device not in self._u3:
            self._late(device, "signature")
        if self._is_repeat(device, self._signatures.get(device), message.signature, "signature"):
            return
        if not verify_signature(self._roster.key(device), message.signature, self._statement):
            raise InputRefused(Reason.BAD_SIGNATURE, f"{device} signed another included set")
        if self.round is Round.CONSISTENCY:
            self._signatures[device] = message.signature

    def on_unmask(self, device: DeviceId, message: Unmask) -> None:
        """Round 4: the shares that a device reveals."""
        self._check_window(device, message)
        if self.round < Round.UNMASK or device not in self._u3:
            self._late(device, "revealed shares")
        if self._is_repeat(device, self._unmasking.answers.get(device), message, "revealed shares"):
            return
        held = self.context.holders(device)
        seeds, keys = ({DeviceId(e.device) for e in part} for part in (message.seeds, message.keys))
        if not (seeds <= held & set(self._u3) and keys <= held & (self._u2 - set(self._u3))):
            raise InputRefused(Reason.PROTOCOL, f"{device} reveals shares that nobody may ask for")
        if self.round is Round.UNMASK:
            self._unmasking.answers[device] = message

    def _check_window(self, device: DeviceId, message: Message) -> None:
        self._check_member(device)
        if getattr(message, "window", None) != self.context.window:
            raise InputRefused(Reason.OUT_OF_ORDER, f"{message.kind} of {device} is of another window")

    def _check_member(self, device: DeviceId) -> None:
        if device not in self.context.weights:
            raise InputRefused(
                Reason.WRONG_SENDER, f"{device} is not in the cohort of window {self.context.window}"
            )

    def _late(self, device: DeviceId, what: str) -> NoReturn:
        raise InputRefused(
            Reason.OUT_OF_ORDER,
            f"{what} of {device}, which is not expected in round {self.round.name.lower()}",
        )

    @staticmethod
    def _is_repeat(device: DeviceId, known: object, new: object, what: str) -> bool:
        if known is not None and known != new:
            raise InputRefused(Reason.FORK, f"{device} sent two different {what}; the first counts")
        return known is not None

    # ---- decisions -------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether waiting longer can bring nothing that the round under way needs.

        In the first three rounds: everybody expected has answered. Then: enough have for everybody's secrets.
        """
        match self.round:
            case Round.KEYS:
                return len(self._adverts) == len(self.context.members)
            case Round.SHARES:
                return len(self._sealed) == len(self._keys)
            case Round.MASKED:
                return len(self._uploads) == len(self._u2)
            case Round.CONSISTENCY:
                return signed_enough(self.context, self._u3, self._signatures)
            case Round.UNMASK:
                return len(self._uploads) == len(self._u3) and (
                    not self._missing() or len(self._unmasking.answers) == len(self._u3)
                )
            case Round.DONE:
                return True

    def close_keys(self) -> KeyList:
        """Decide U1."""
        self._in_round(Round.KEYS)
        entries = tuple(self._adverts[device] for device in thriving(self.context, set(self._adverts)))
        return self._decide(KeyList(window=self.context.window, entries=entries))

    def close_shares(self) -> tuple[SharesList, dict[DeviceId, Deliver]]:
        """Decide U2; with it the ciphertexts for each device in it."""
        self._in_round(Round.SHARES)
        devices = thriving(self.context, set(self._sealed))
        decision = self._decide(SharesList(window=self.context.window, devices=tuple(devices)))
        found: dict[DeviceId, dict[DeviceId, bytes]] = {device: {} for device in devices}
        for sender in devices:
            for entry in self._sealed[sender].entries:
                if entry.device in found:
                    found[DeviceId(entry.device)][sender] = entry.ciphertext
        return decision, {
            device: Deliver(
                window=self.context.window,
                to=device,
                entries=tuple(
                    SealedShare(device=sender, ciphertext=text) for sender, text in sorted(texts.items())
                ),
            )
            for device, texts in found.items()
        }

    def close_masked(self) -> Included:
        """Decide U3: every upload that was added."""
        self._in_round(Round.MASKED)
        entries = tuple(
            Upload(device=device, upload_sha256=sha) for device, sha in sorted(self._uploads.items())
        )
        return self._decide(Included(window=self.context.window, entries=entries))

    def close_consistency(self) -> Signatures:
        """Decide U4."""
        self._in_round(Round.CONSISTENCY)
        entries = tuple(SignatureEntry(device=d, signature=s) for d, s in sorted(self._signatures.items()))
        return self._decide(Signatures(window=self.context.window, entries=entries))

    def _in_round(self, expected: Round) -> None:
        if self.round is not expected:
            raise ProtocolError(
                f"window {self.context.window} is in round {self.round.name.lower()}, not {expected.name.lower()}"
            )

    def _decide(self, message: _D) -> _D:
        self._check_enough(message)
        self._enter(message)
        return message

    def adopt(self, message: Decision) -> None:
        """Take a decision that was recorded before, instead of closing the round. The one in force is
        ignored.

        Raises:
            ProtocolError: out of order, another decision than the one in force, or not a possible one.
        """
        number = DECIDES[type(message)]
        where = f"window {self.context.window}, decision {message.kind!r}"
        if message.window != self.context.window:
            raise ProtocolError(f"{where}: it is of window {message.window}")
        if number in self._decisions:
            if self._decisions[number] != message:
                raise ProtocolError(f"{where}: it differs from the one in force")
            return
        if number is not self.round:
            raise ProtocolError(f"{where}: the round under way is {self.round.name.lower()}")
        match message:
            case KeyList():
                self._check_keys(message)
            case SharesList():
                if not set(message.devices) <= set(self._keys):
                    raise ProtocolError(f"{where}: it names devices that are not in the key list")
            case Included():
                wanted = {entry.device: entry.upload_sha256 for entry in message.entries}
                if not set(wanted) <= self._u2:
                    raise ProtocolError(f"{where}: it names devices that are not in the shares list")
                if any(wanted.get(device) != sha256 for device, sha256 in self._uploads.items()):
                    raise ProtocolError(
                        f"{where}: an upload was added that it does not name; adopt it before them"
                    )
            case Signatures():
                for entry in message.entries:
                    if entry.device not in self._u3 or not verify_signature(
                        self._roster.key(entry.device), entry.signature, self._statement
                    ):
                        raise ProtocolError(f"{where}: {entry.device} did not sign the included set")
        try:
            self._check_enough(message)
        except WindowFailed as failed:
            raise ProtocolError(f"{where}: {failed.detail}") from None
        self._enter(message)

    def _check_keys(self, message: KeyList) -> None:
        publics: set[bytes] = set()
        for entry in message.entries:
            self._check_member(DeviceId(entry.device))
            publics |= {entry.cipher_public, entry.mask_public}
            signed = self.context.advert_statement(entry)
            if self._adverts.get(DeviceId(entry.device)) != entry and not (
                verify_signature(self._roster.key(entry.device), entry.signature, signed)
                and usable(entry.cipher_public)
                and usable(entry.mask_public)
            ):
                raise ProtocolError(
                    f"window {message.window}: the key list holds keys that {entry.device} did not sign"
                )
        if len(publics) != 2 * len(message.entries):
            raise ProtocolError(f"window {message.window}: one key stands twice in the key list")

    def _check_enough(self, message: Decision) -> None:
        """Threshold around every device, and the floor, as every device will check them."""
        if not isinstance(message, Signatures):
            check_enough(self.context, message, self._u2)
        elif not signed_enough(self.context, self._u3, [DeviceId(entry.device) for entry in message.entries]):
            raise WindowFailed("threshold", f"{len(message.entries)} devices signed the included set")

    def _enter(self, message: Decision) -> None:
        """Put a decision in force."""
        match message:
            case KeyList():
                self._keys = {DeviceId(entry.device): entry for entry in message.entries}
                self._bound = self.context.bound(message)
            case SharesList():
                self._shares = message
                self._u2 = frozenset(DeviceId(device) for device in message.devices)
            case Included():
                self._u3 = {DeviceId(entry.device): entry.upload_sha256 for entry in message.entries}
                self._statement = consistency_statement(self._bound, self._shares, message)
            case Signatures():
                self._signatures = {DeviceId(entry.device): entry.signature for entry in message.entries}
        self._decisions[self.round] = message
        self.round = Round(self.round + 1)

    # ---- the sum ---------------------------------------------------------------------------------

    def finish(self) -> SumResult:
        """Recover the secrets, take the masks off, and give the sum.

        Raises:
            WindowFailed: "threshold" when too few answered, "bad-shares" when answers do not fit their
            secrets. ProtocolError: the included set is not signed yet.
        """
        if self._result is not None:
            return self._result
        self._in_round(Round.UNMASK)
        if len(self._uploads) != len(self._u3):
            raise WindowFailed(
                "threshold", f"{len(self._u3) - len(self._uploads)} included uploads are not there"
            )
        if missing := self._missing():
            self._unmasking.fail(missing)
        dropped, bound = sorted(self._u2 - set(self._u3)), masks_bound(self._bound, self._shares)
        self._masker.add(self._total, self._unmasking.masks(self._keys, bound, self._u3, dropped))
        self._unmasking.forget()
        self.round = Round.DONE
        self._result = SumResult(
            included=tuple(sorted(self._u3)),
            total=self._total,
            uploads=dict(self._u3),
            signatures=dict(self._signatures),
            dropped=tuple(dropped),
            suspects=self._unmasking.suspects,
            over=over_rank_blocks(self.context, self._u2),
        )
        return self._result

    def _missing(self) -> frozenset[DeviceId]:
        """Devices whose secrets the answers so far do not give."""
        return self._unmasking.recover(self._keys, self._u2, self._u3)
