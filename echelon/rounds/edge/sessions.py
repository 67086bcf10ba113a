"""Sessions of an edge with its devices: which are open, which were asked for, and what a frame of one is.

An edge keeps one open session for each device. A session that is asked for stands beside it until its first frame
comes: only the device can seal that one.
"""

from __future__ import annotations

from dataclasses import dataclass

from echelon.errors import ProtocolError
from echelon.laws.channel import Channel, ChannelBroken, Parties, edge_channel
from echelon.messages.frames import Decline, Declined
from echelon.messages.split import SplitAccept, SplitFrame, SplitOpen, SplitPong
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.edge.frame_order import MiddleJob
from echelon.rounds.effects import EdgeDrop, Effect, Publish, Refuse, note
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import AgreementKey
from echelon.secagg.roster import Roster

ASKED = 4
"""Most sessions of one device that were accepted and not begun; the oldest goes for another one."""


@dataclass(slots=True)
class EdgeSession:
    """One session with a device; never stored."""

    channel: Channel
    accept: SplitAccept
    """What opened it: asked again, the edge says it again."""
    job: MiddleJob | None = None
    newest: int = -1
    """The newest job or evaluation that was asked for: numbers ascend within a session."""
    told: tuple[int, int] = (0, 0)
    """Bytes taken and sent that the metrics know of."""
    heard: bool = True
    """Whether a frame came since the last look."""
    leaving: bool = False
    """Whether its device asked another edge for a session since its last frame."""

    def answers(self, message: SplitOpen) -> bool:
        """Whether this is the session that is asked for."""
        return (self.accept.session, self.accept.device_public) == (message.session, message.public)

    def traffic(self) -> Effect:
        """Note what the device and this edge sent each other since the last note."""
        up, down = self.channel.taken_bytes, self.channel.sent_bytes
        before, self.told = self.told, (up, down)
        return note("split-bytes", up=up - before[0], down=down - before[1])


@dataclass(frozen=True, slots=True)
class Heard:
    """What a device said in its open session.

    Attributes:
        session: the session.
        head: what the frame says.
        tensor: the bytes that came with it.
    """

    session: EdgeSession
    head: Message
    tensor: bytes


class EdgeSessions:
    """All sessions of one edge.

    Args:
        run: the run's 16 bytes.
        edge: the edge's name.
        roster: whose devices may have a session.
        entropy: of the edge's session keys.
    """

    def __init__(self, *, run: bytes, edge: str, roster: Roster, entropy: Entropy) -> None:
        self._run, self._edge, self._roster, self._entropy = run, edge, roster, entropy
        self.live: dict[str, EdgeSession] = {}
        """The open session of each device."""
        self.asked: dict[str, dict[bytes, EdgeSession]] = {}
        """By device: sessions that were accepted and of which no frame came yet. They replace none before."""

    def serves(self, device: str) -> bool:
        """Whether the device has a session with this edge, or asked for one."""
        return device in self.live or device in self.asked

    def knows(self, device: str, session: bytes) -> bool:
        """Whether that is a session of the device, or one that it asked for."""
        session_of_device = self.live.get(device)
        live = session_of_device is not None and session_of_device.channel.session == session
        return live or session in self.asked.get(device, {})

    def accept(self, device: str, message: SplitOpen) -> list[Effect]:
        """Accept a session, beside the one that there is.

        A record may be an old one that is shown again: so nothing is given up for it before a frame comes under the new
        session's keys, which only the device can seal.

        Raises:
            ProtocolError: the device opens one session with two keys.
        """
        known = self.live.get(device)
        if message.edge != self._edge:
            if known is not None:
                known.leaving = True
            return []
        asked = self.asked.get(device, {})
        for earlier in (known, asked.get(message.session)):
            if earlier is not None and earlier.answers(message):
                return [self.answer(device, earlier.accept)]
            if earlier is not None and earlier.accept.session == message.session:
                raise ProtocolError(f"{device} opens one session with two keys")
        key = AgreementKey(self._entropy.token(32))
        parties = Parties(self._run, self._roster.boundary, device, self._edge)
        channel = edge_channel(parties, message.session, key, message.public)
        accept = SplitAccept(
            device=device, session=message.session, device_public=message.public, public=key.public
        )
        asked = self.asked.setdefault(device, {})
        asked[message.session] = EdgeSession(channel, accept)
        while len(asked) > ASKED:
            del asked[next(iter(asked))]
        return [self.answer(device, accept), note("split-session", device=device)]

    def answer(self, device: str, message: SplitAccept | SplitPong) -> Publish:
        """Publish a record for one device that is not part of a session."""
        return Publish("split.down", message, 0, partition=self._roster.entry(device).slot)

    def send(self, device: str, head: Message, tensor: bytes = b"") -> Publish:
        """Seal a frame in the device's open session.

        Args:
            device: who gets it.
            head: what the frame says.
            tensor: the bytes that go with it.

        Returns:
            The frame's record with its payload.
        """
        frame, payload = self.live[device].channel.seal(head, tensor)
        return Publish("split.down", frame, 0, payload, self._roster.entry(device).slot)

    def drop_job(self, device: str) -> list[Effect]:
        """Give up what is under way with a device."""
        session = self.live.get(device)
        if session is None or session.job is None:
            return []
        session.job = None
        return [EdgeDrop(device)]

    def decline(self, device: str, job: int, reason: Decline) -> list[Effect]:
        """Give up what is under way with a device and say that its job is declined.

        Args:
            device: whose job it is.
            job: its number.
            reason: why the edge does not do it.

        Returns:
            The answer, after what lets the work go.
        """
        return [
            *self.drop_job(device),
            self.send(device, Declined(job=job, reason=reason)),
            note("split-declined", device=device, reason=reason.value),
        ]

    def framed(self, device: str, message: SplitFrame, payload: bytes) -> tuple[list[Effect], Heard | None]:
        """Open a frame.

        Args:
            device: who sent it.
            message: the frame's record.
            payload: its sealed bytes.

        Returns:
            What follows from the frame alone; and what it says, None if it was taken before or cannot be opened.
        """
        asked = self.asked.get(device, {}).get(message.session)
        if asked is not None:
            return self._first(device, asked, message, payload)
        session = self.live.get(device)
        if session is None or session.channel.session != message.session:
            return [], None  # another edge's, or of a session that is over
        try:
            opened = session.channel.open(message, payload)
        except (ChannelBroken, Refused) as error:
            effects = self.drop_job(device)
            del self.live[device]
            return [*effects, _refused(device, error)], None
        if opened is None:
            return [], None
        session.heard, session.leaving = True, False
        return [], Heard(session, *opened)

    def _first(
        self, device: str, asked: EdgeSession, message: SplitFrame, payload: bytes
    ) -> tuple[list[Effect], Heard | None]:
        """Open a frame of a session that was only asked for: if the device sealed it, the session begins."""
        try:
            opened = asked.channel.open(message, payload)
        except (ChannelBroken, Refused) as error:
            return [_refused(device, error)], None
        if opened is None:
            return [], None
        return self._entered(device, asked), Heard(asked, *opened)

    def _entered(self, device: str, session: EdgeSession) -> list[Effect]:
        """The first frame of a session came: it takes the place of the one before."""
        effects = self.drop_job(device)
        self.live[device] = session
        del self.asked[device]
        return effects

    def look(self) -> list[Effect]:
        """Give up jobs and sessions of devices that said nothing since the last look."""
        effects, gone = list[Effect](), list[str]()
        for device, session in self.live.items():
            if not session.heard and session.job is not None and not session.job.finishing:
                session.job = None
                effects += [EdgeDrop(device), note("split-idle", device=device)]
            if session.leaving and not session.heard and session.job is None:
                gone.append(device)
            session.heard = False
        for device in gone:
            del self.live[device]
        for device, asked in list(self.asked.items()):
            self.asked[device] = {name: waiting for name, waiting in asked.items() if waiting.heard}
            for waiting in self.asked[device].values():
                waiting.heard = False
            if not self.asked[device]:
                del self.asked[device]
        return effects


def _refused(device: str, error: ChannelBroken | Refused) -> Refuse:
    reason = error.reason if isinstance(error, Refused) else Reason.OUT_OF_ORDER
    return Refuse(reason, f"{device}: {error}")
