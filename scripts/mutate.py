"""Break named conditions of the protocol, one at a time, and see the tests go red.

A condition that can be taken out without any test noticing is a condition that nobody guards. Each
entry of `MUTATIONS` names one line of the source, what it is replaced by, the tests that must notice, and why
the line matters. The tree is copied first and only the copy is changed.

    python scripts/mutate.py             all of them
    python scripts/mutate.py floor       those whose name contains "floor"
    python scripts/mutate.py --list      show what there is

Exit status: 0 when every mutation turned its tests red; 1 when one survived, did not fit the source any more
(its text must stand there exactly once), or its tests were not green before; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

# What the tests need of the tree; caches, environments and runs stay behind.
LEFT_BEHIND = shutil.ignore_patterns(
    ".*_cache",
    ".coverage*",
    ".git",
    ".hypothesis",
    ".venv",
    "__pycache__",
    "build",
    "dist",
    "htmlcov",
    "runs",
)

# pytest's exit status: https://docs.pytest.org/en/stable/reference/exit-codes.html
PYTEST_GREEN = 0
PYTEST_RED = 1

# A mutated loop may never end. pytest-timeout fails single tests before this.
LIMIT_S = 600.0


@dataclass(frozen=True)
class Mutation:
    """One way to break the code, and who must notice.

    Attributes:
        name: short and unique, what is broken ("floor enforced by the device").
        file: path below the root of the repository.
        find: the source text that is replaced, without the white space around it; several lines are allowed.
            With `regex`, a regular expression (multi-line mode). It must match exactly once in the file.
        replace: what stands there instead; with `regex`, backslash references to groups are expanded.
        tests: pytest node ids or paths of which at least one test must fail.
        why: what an attacker or an accident gains where this condition is missing.
        regex: whether `find` is a regular expression.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    why: str
    regex: bool = False


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        name="floor of heads",
        file="echelon/secagg/context.py",
        find="if len(weights) < floor:",
        replace="if not weights:",
        tests=("tests/secagg/test_adversary.py",),
        why="An aggregator could unmask the sum of two devices, or of one: an update.",
    ),
    Mutation(
        name="floor of weight",
        file="echelon/secagg/context.py",
        find="if not weight_holds(weights, self.k_min, self.colluding):",
        replace="if False:",
        tests=("tests/secagg/test_adversary.py",),
        why="One heavy update would stand out of the sum of many light ones.",
    ),
    Mutation(
        name="ring that is cut",
        file="echelon/secagg/context.py",
        find="if fewest <= self.colluding:",
        replace="if fewest < 0:",
        tests=("tests/secagg/test_adversary.py",),
        why="What is left on either side of two gaps would be two sums.",
    ),
    Mutation(
        name="threshold on a ring",
        file="echelon/secagg/context.py",
        find="return -(-2 * (degree + 2 + colluding) // 3)",
        replace="return threshold(degree + 1, colluding)",
        tests=("tests/secagg/test_ring_secrecy.py",),
        why="Parts of a ring could be shown lists of their own, and their sums learned one by one.",
    ),
    Mutation(
        name="masks bound to the shares list",
        file="echelon/secagg/context.py",
        find='statement("masks", bound, hashlib.sha256(shares.encode()).digest())',
        replace='statement("masks", bound, b"")',
        tests=("tests/secagg/test_adversary.py",),
        why="Masks of devices that were shown other shares lists would cancel.",
    ),
    Mutation(
        name="never both shares",
        file="echelon/secagg/client.py",
        find="dropped = self._u2 - self._u3",
        replace="dropped = self._u2",
        tests=("tests/secagg/test_adversary.py", "tests/secagg/test_window.py"),
        why="With the shares of a device's seed and of its mask key, its masked update can be read.",
    ),
    Mutation(
        name="threshold of signatures",
        file="echelon/secagg/client.py",
        find="if near < context.threshold:",
        replace="if near < 1:",
        tests=("tests/secagg/test_adversary.py",),
        why="Two groups of devices could be shown two included sets, and their sums subtracted.",
    ),
    Mutation(
        name="files found open are closed",
        file="echelon/private.py",
        find="if stat.S_IMODE(status.st_mode) != wanted:",
        replace="if False:",
        tests=("tests/cli/test_private.py",),
        why="State and updates of an earlier version, or of a careless copy, would stay open to every user.",
    ),
    Mutation(
        name="databases made for their owner alone",
        file="echelon/actors/state.py",
        find="private_database(path)",
        replace="pass",
        tests=("tests/cli/test_private.py",),
        why="SQLite makes its files as the umask says: optimiser state for every user to read.",
    ),
    Mutation(
        name="passphrase files of everybody",
        file="echelon/passphrase.py",
        find="if mode & (stat.S_IROTH | stat.S_IWOTH):",
        replace="if mode < 0:",
        tests=("tests/provision/test_passphrases.py",),
        why="A passphrase that every user can read protects no key.",
    ),
    Mutation(
        name="keys in the clear beside a passphrase",
        file="echelon/passphrase.py",
        find="if passphrase is not None and not is_encrypted(pem):",
        replace="if False and passphrase is not None:",
        tests=("tests/provision/test_passphrases.py",),
        why="An owner would take a key for encrypted that is not.",
    ),
    Mutation(
        name="names that mean something else",
        file="echelon/messages/names.py",
        find='if name in RESERVED:\n        raise ValueError(f"a boundary',
        replace='if not name:\n        raise ValueError(f"a boundary',
        tests=("tests/provision/kafka/test_names.py",),
        why="A boundary called exchange would write its log over the exchange's.",
    ),
    Mutation(
        name="deadline of a request",
        file="echelon/services/http.py",
        find="if one.until <= now",
        replace="if one.until <= 0",
        tests=("tests/services/test_slow_clients.py",),
        why="A client that drips holds a connection for ever.",
    ),
    Mutation(
        name="the oldest request makes room",
        file="echelon/services/http.py",
        find='self._drop(next(iter(self._open)), "others came")',
        replace="pass",
        tests=("tests/services/test_slow_clients.py",),
        why="Clients that hang keep the probe from its answer, and the service is restarted for it.",
    ),
    Mutation(
        name="spent before upload",
        file="echelon/rounds/device/member.py",
        find="offer.window = cohort.window\n        cohort.phase",
        replace="cohort.phase",
        tests=("tests/rounds/device/test_core.py",),
        why="A device that restarts after its upload would offer the same update again: it would count twice.",
    ),
    Mutation(
        name="signed close before an offer returns",
        file="echelon/rounds/device/member.py",
        find="cohort.window == window and cohort.signed_out",
        replace="cohort.window == window",
        tests=("tests/rounds/device/test_core.py",),
        why="An aggregator alone could say that an update was left out, and get it a second time in another sum.",
    ),
    Mutation(
        name="pairs of windows",
        file="echelon/rounds/device/member.py",
        find="if 0 < difference < k_min:",
        replace="if False:",
        tests=("tests/rounds/device/test_core.py",),
        why="Two sums over one version that differ by one device give that device's update.",
    ),
    Mutation(
        name="bases of a cohort",
        file="echelon/rounds/device/member.py",
        find="if known.get(update.base_version) != update.base_sha256:",
        replace="if False:",
        tests=("tests/rounds/device/test_core.py",),
        why="A device could be given an adapter of its own to train from, which marks its update.",
    ),
    Mutation(
        name="cohort of an earlier life",
        file="echelon/rounds/device/member.py",
        find="if offset < live_from:\n            self._state.member_of",
        replace="if offset < 0:\n            self._state.member_of",
        tests=("tests/rounds/device/test_core.py",),
        why="A device that restarts would send a second set of keys for one window.",
    ),
    Mutation(
        name="the gate derives the sum",
        file="echelon/rounds/gate/window.py",
        find="digest != message.sum_sha256\n            or summary",
        replace="summary",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="An aggregator could send across what no threshold of devices ever added up to.",
    ),
    Mutation(
        name="the gate asks the exchange",
        file="echelon/rounds/gate/global_facts.py",
        find="if self.refusals[seq].stale is not stale:",
        replace="if False:",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="A boundary could take a merged delta back into its remainder: its windows would count twice.",
    ),
    Mutation(
        name="residue of the rounding",
        file="echelon/laws/ledger.py",
        find="self.remainder[part] -= delta[part]",
        replace="self.remainder[part] = 0.0",
        tests=("tests/laws/test_ledger.py",),
        why="What rounding cuts off would be lost with each delta.",
    ),
    Mutation(
        name="damping of late updates",
        file="echelon/laws/cohort.py",
        find="weight = min(table, cap)",
        replace="weight = min(member.weight, cap)",
        tests=("tests/rounds/device/test_core.py", "tests/rounds/gate/test_derivation.py"),
        why="An aggregator could give a device any weight that it likes.",
    ),
    Mutation(
        name="versions that were derived",
        file="echelon/rounds/device/adapters.py",
        find="and self.versions.usable(adapter.message.version, adapter.message.sha256)",
        replace="",
        tests=("tests/laws/test_versions.py",),
        why="An aggregator could have a device train from an adapter of its own choice.",
    ),
    Mutation(
        name="a cohort's versions",
        file="echelon/rounds/device/member.py",
        find="if self._versions.missing(message.bases):",
        replace="if False:",
        tests=("tests/laws/test_versions.py",),
        why="A device could be the only one of a cohort whose update is not zero.",
    ),
    Mutation(
        name="steps that clipped updates can make",
        file="echelon/laws/versions.py",
        find="if moved > most + slack:",
        replace="if False:",
        tests=("tests/laws/test_versions.py",),
        why="An aggregator and a gate could put devices onto a dead adapter at once.",
    ),
    Mutation(
        name="a revoked key and what was read",
        file="echelon/laws/keys.py",
        find="place < later.read or (not later.revokes and seen <= later.since)",
        replace="place < later.read or seen <= later.since",
        tests=("tests/audit/test_signers.py",),
        why="A thief with a revoked key could say that he had read less than what revoked it.",
    ),
    Mutation(
        name="the order of a gate's keys",
        file="echelon/laws/keys.py",
        find="if number < used or own.public == NOBODY:",
        replace="if own.public == NOBODY:",
        tests=("tests/audit/test_signers.py",),
        why="A key that was handed on could come back behind its successor.",
    ),
    Mutation(
        name="the proof of a key that begins",
        file="echelon/laws/keys.py",
        find="if not statement.proven(kind):",
        replace="if False:",
        tests=("tests/laws/test_keys.py",),
        why="Somebody could hand his key on to one that is another's, or nobody's.",
    ),
    Mutation(
        name="who may end a key",
        file="echelon/laws/keys.py",
        find="if not statement.signed(kind, author):",
        replace="if False:",
        tests=("tests/laws/test_keys.py",),
        why="The controller could give any gate's key to itself.",
    ),
    Mutation(
        name="the controller's signature under an anchor",
        file="echelon/laws/versions.py",
        find="if not opened.verified(keys.key_at(CONTROLLER, message.index + 1)):",
        replace="if False:",
        tests=("tests/laws/test_versions.py",),
        why="A boundary could pass off any adapter as a commit's.",
    ),
    Mutation(
        name="pace and progress of the signed commit",
        file="echelon/laws/versions.py",
        find="if message.pace != commit.pace or message.progress_ppm != progress:",
        replace="if False:",
        tests=("tests/laws/test_versions.py",),
        why="An aggregator could choose steps and rate of its devices.",
    ),
    Mutation(
        name="the weight of colluding devices",
        file="echelon/secagg/floors.py",
        find="return bool(ordered) and sum(ordered[colluding + 1 :]) >= (k_min - 1) * ordered[0]",
        replace="return bool(ordered) and sum(ordered) >= k_min * ordered[0]",
        tests=("tests/secagg/test_cohort.py",),
        why="A colluding device's weight would count as cover for the victim's.",
    ),
    Mutation(
        name="the floor of evaluations",
        file="echelon/secagg/partial_sums.py",
        find="if self._context.may_add(who, len(u2), weighed=what != EVALUATIONS)",
        replace="if what == EVALUATIONS or self._context.may_add(who, len(u2), weighed=True)",
        tests=("tests/rounds/test_evaluations.py",),
        why="One device's validation loss would cross.",
    ),
    Mutation(
        name="evaluations left after drop-outs",
        file="echelon/secagg/partial_sums.py",
        find="if who and len(left) < floor:",
        replace="if False:",
        tests=("tests/rounds/test_evaluations.py",),
        why="An aggregator could leave those out who hide the last ones that added.",
    ),
    Mutation(
        name="the base of a delta",
        file="echelon/rounds/gate/global_facts.py",
        find="if set(message.merged) != merged:",
        replace="if False:",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="A boundary could adopt what no commit says.",
    ),
    Mutation(
        name="refusals before an adoption",
        file="echelon/rounds/gate/global_facts.py",
        find="if due - told:",
        replace="if False:",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="A boundary could train on with a delta that was refused.",
    ),
    Mutation(
        name="the digest of a version",
        file="echelon/rounds/gate/derivation.py",
        find="if (message.commit, message.sha256) != (self.ledger.commit, sha256):",
        replace="if False:",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="The gate would confirm whatever the aggregator publishes.",
    ),
    Mutation(
        name="versions without a reason",
        file="echelon/rounds/gate/derivation.py",
        find="if bare and (self._open is None or self._open.signatures is None):",
        replace="if False:",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="A version of its own for every window would leave the guard of pairs without a pair.",
    ),
    Mutation(
        name="root that a gate had read",
        file="echelon/laws/transcript.py",
        find="if size and self._roots[size - 1] != delta.seen_root:",
        replace="if False:",
        tests=("tests/adversary/test_rewritten_logs.py",),
        why="The controller alone could write its log anew: split a commit, leave a boundary out, re-order refusals.",
    ),
    Mutation(
        name="more read than there is",
        file="echelon/laws/transcript.py",
        find="if size > self.size:",
        replace="if False:",
        tests=("tests/laws/test_transcript.py",),
        why="A log that was cut would carry the proof against itself, and nobody would read it.",
    ),
    Mutation(
        name="base by its digest",
        file="echelon/laws/transcript.py",
        find="if sha256 != delta.base_sha256:",
        replace="if False:",
        tests=("tests/laws/test_transcript.py",),
        why="A delta could depart from another commit of the same number.",
    ),
    Mutation(
        name="a gate that goes back",
        file="echelon/laws/transcript.py",
        find="if size < before:",
        replace="if False:",
        tests=("tests/laws/test_transcript.py",),
        why="A gate could answer an older log than it had signed for.",
    ),
    Mutation(
        name="deltas after the last commit are held too",
        file="echelon/audit/verify.py",
        find="self._hold(boundary, entry, entry.message, None)",
        replace="pass",
        tests=("tests/adversary/test_rewritten_logs.py",),
        why="Deltas from commits that were taken back would be late, and no error.",
    ),
    Mutation(
        name="a witness proves what was withheld",
        file="echelon/audit/interlock.py",
        find="if by > len(self._commits) or self._head(boundary, by) >= sighting.size:",
        replace="if True:",
        tests=("tests/adversary/test_rewritten_logs.py",),
        why="A boundary could be left unread in spite of cosignatures.",
    ),
    Mutation(
        name="a gate states no less than before",
        file="echelon/actors/gate.py",
        find="return found is not None and found[0] < seen.size and seen.size >= self._said and not seen.closed",
        replace="return found is not None and found[0] < seen.size and not seen.closed",
        tests=("tests/actors/test_gate.py",),
        why="After a restart an honest gate would contradict itself.",
    ),
    Mutation(
        name="one time alone is not believed",
        file="echelon/laws/timing.py",
        find="if len(values) >= QUORUM:\n        return median(values)",
        replace="if len(values) != 2:\n        return median(values)",
        tests=("tests/laws/test_timing.py",),
        why="The controller's clock alone would lengthen the interval eightfold.",
    ),
    Mutation(
        name="a delta counts once",
        file="echelon/rounds/controller/core.py",
        find="if delta.seq < len(known):",
        replace="if False:",
        tests=("tests/rounds/controller/test_core.py",),
        why="At-least-once delivery, or a gate that says a thing twice, would merge one delta twice.",
    ),
    Mutation(
        name="prefix of the log",
        file="echelon/audit/log.py",
        find="if message.prefix != self.chain.value:",
        replace="if False:",
        tests=("tests/audit/test_log.py",),
        why="Records could be deleted, swapped or slipped in between manifests without anybody noticing.",
    ),
    Mutation(
        name="witness: no other root",
        file="echelon/audit/witness.py",
        find="if checkpoint.root != root:",
        replace="if root == EMPTY_ROOT:",
        tests=("tests/audit/test_witness.py",),
        why="A witness would take two histories of one size for one.",
    ),
    Mutation(
        name="witness: heads continue",
        file="echelon/audit/witness.py",
        find="if not continues:",
        replace="if size == 0 and not continues:",
        tests=("tests/audit/test_witness.py", "tests/actors/test_witness.py"),
        why="A witness would cosign a larger log that does not begin with the one that it cosigned.",
    ),
    Mutation(
        name="witness: its own topic is remembered",
        file="echelon/actors/witness.py",
        find='self.core.recall(record.key.decode("utf-8", "replace"), record.value)',
        replace="pass",
        tests=("tests/actors/test_witness.py",),
        why="With a lost state file one key would cosign a second history.",
    ),
    Mutation(
        name="witness: stored before it is sent",
        file="echelon/actors/witness.py",
        find="return self.store.commit(witness=snapshot, publish=publish)",
        replace="return self.store.commit(publish=publish)",
        tests=("tests/actors/test_witness.py",),
        why="A restart would forget what was cosigned.",
    ),
    Mutation(
        name="witness: rounds have times of their own",
        file="echelon/audit/witness.py",
        find="self.last_time = max(now, self.last_time + 1)",
        replace="self.last_time = max(now, self.last_time)",
        tests=("tests/audit/test_witness.py", "tests/actors/test_witness.py"),
        why="What was read later could be taken for what was read before.",
    ),
    Mutation(
        name="heads: only what the broker has",
        file="echelon/actors/announcing.py",
        find="self._standing = max(standing, *(self._writer.sizes.get(leaf, 0) for leaf in self._early), 0)",
        replace="self._standing = len(self._writer.tree)",
        tests=("tests/actors/test_witness.py",),
        why="A writer that loses its state would seem to have two histories.",
    ),
    Mutation(
        name="audit: a cosigned root is the log's",
        file="echelon/audit/cosigned.py",
        find="if here == root:",
        replace="if here:",
        tests=("tests/audit/test_cosigned.py",),
        why="The proof of a fork would lie there unread.",
    ),
    Mutation(
        name="audit: signed times and no other order",
        file="echelon/audit/cosigned.py",
        find="place = bisect_left(pairs, (time, 0))",
        replace="place = max(0, bisect_left(pairs, (time, 0)) - 1)",
        tests=("tests/audit/test_cosigned.py",),
        why="A delta would seem to have been there before it was.",
    ),
    Mutation(
        name="audit: cosignatures are counted to the end",
        file="echelon/audit/cosigned.py",
        find="enough = [name for name in able if newest.get(name, 0) >= least]",
        replace="enough = [name for name in able if newest.get(name, 0)]",
        tests=("tests/audit/test_cosigned.py",),
        why="The newest manifests could be taken back.",
    ),
    Mutation(
        name="a bad line of a known key",
        file="echelon/audit/note.py",
        find="return bool(lines) and all(",
        replace="return bool(lines) and any(",
        tests=("tests/audit/test_note.py",),
        why="The format says that such a note is rejected.",
    ),
    Mutation(
        name="edge: signatures of the included set",
        file="echelon/rounds/edge/window_sum.py",
        find="if not verify_signature(self.roster.key(device), entry.signature, statement):",
        replace="if False:",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="An aggregator would sign an included set in the place of devices, and read one device's middle.",
    ),
    Mutation(
        name="edge: threshold of the included set",
        file="echelon/rounds/edge/window_sum.py",
        find="device for device in devices if len(signers & context.holders(device)) >= context.threshold",
        replace="device for device in devices",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="No signature at all would release a part.",
    ),
    Mutation(
        name="edge: what a device signed of its offer",
        file="echelon/rounds/edge/window_sum.py",
        find="and verify_signature(",
        replace="and True or verify_signature(",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="The key list shows who signed what the cohort says of an offer; without it that is the aggregator's word.",
    ),
    Mutation(
        name="edge: jobs are in the context",
        file="echelon/laws/cohort.py",
        find="        offers_sha256=offers_sha256(cohort),",
        replace="",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="The aggregator could name another job of a device than it offered.",
    ),
    Mutation(
        name="edge: base of the job",
        file="echelon/rounds/edge/kept.py",
        find="job in self.moved and self.bases.get(job) == (version, sha256) for job in jobs",
        replace="job in self.moved for job in jobs",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="Members on a dead version would leave the victim's middle alone in the sum.",
    ),
    Mutation(
        name="edge: versions that the gate derived",
        file="echelon/rounds/edge/core.py",
        find="if self._derived.get(member.base_version) != digest:",
        replace="if False:",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="An aggregator alone would choose what devices train from.",
    ),
    Mutation(
        name="edge: one base in a part",
        file="echelon/laws/cohort.py",
        find="groups.setdefault(member.base_version, []).append(member)",
        replace="groups.setdefault(0, []).append(member)",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="Middles of different versions do not hide each other.",
    ),
    Mutation(
        name="edge: one base in a part, by whoever reads it",
        file="echelon/laws/cohort.py",
        find="if len(versions) > 1:",
        replace="if False:",
        tests=(
            "tests/rounds/edge/test_window_sum.py::test_an_aggregator_and_a_gate_refuse_a_part_that_mixes_versions",
        ),
        why="An edge that mixes versions would not be noticed.",
    ),
    Mutation(
        name="edge: floor of each block",
        file="echelon/rounds/edge/window_sum.py",
        find="if movers and not releasable([member.weight for member, _ in movers], self._secure):",
        replace="if False:",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="The only device that leaves a block to its edge would stand in the part in the clear.",
    ),
    Mutation(
        name="edge: a second cohort",
        file="echelon/rounds/edge/core.py",
        find="            if self._open.cohort != message:",
        replace="            if False:",
        tests=("tests/rounds/edge/test_attacks.py",),
        why="Two cohorts of one window are two sums.",
    ),
    Mutation(
        name="edge: an old opening",
        file="echelon/rounds/edge/sessions.py",
        find="        asked[message.session] = EdgeSession(channel, accept)",
        replace="        asked[message.session] = self.live[device] = EdgeSession(channel, accept)",
        tests=("tests/rounds/edge/test_sessions.py",),
        why="A record shown again would drop a device's session.",
    ),
    Mutation(
        name="edge: norm of a part",
        file="echelon/laws/cohort.py",
        find="if message.norm2 > norm2_bound(weights, manifest.secure):",
        replace="if False:",
        tests=("tests/rounds/edge/test_window_sum.py",),
        why="An edge could void every window.",
    ),
    Mutation(
        name="edge: sums in the ring",
        file="echelon/laws/cohort.py",
        find="        found[at] = centred(block)",
        replace="        found[at] = np.clip(block, -(1 << 31), (1 << 31) - 1)",
        tests=("tests/secagg/test_cohort.py",),
        why="A device that fills the middle would lead aggregator and gate outside of what the ring holds.",
    ),
    Mutation(
        name="edge: a quorum of judgements",
        file="echelon/rounds/aggregator/trust_standings.py",
        find="return len(self._now) >= max(1, self.quorum)",
        replace="return bool(self._now)",
        tests=("tests/rounds/aggregator/test_trust_standings.py",),
        why="Two devices would have a third kept out.",
    ),
    Mutation(
        name="edge: shape of a record of behaviour",
        file="echelon/rounds/aggregator/trust_standings.py",
        find="if shape != self.shape:",
        replace="if False:",
        tests=("tests/rounds/aggregator/test_trust_standings.py",),
        why="One device would stop its boundary.",
    ),
    Mutation(
        name="a rewrite of what was verified",
        file="echelon/audit/incremental.py",
        find="if record_digest(record) != journal.digest(index):",
        replace="if False:",
        tests=("tests/audit/test_incremental.py::test_a_changed_record_of_the_verified_part_is_found",),
        why="An incremental verification would go on from a history that the source does not show any more.",
    ),
    Mutation(
        name="a rollback of what was verified",
        file="echelon/audit/incremental.py",
        find="if record is None:\n            last",
        replace="if record is None:\n            return None\n            last",
        tests=("tests/audit/test_incremental.py::test_a_rollback_is_found_however_far_it_goes",),
        why="A log that was cut back behind what an auditor has seen would verify.",
    ),
    Mutation(
        name="an error is not kept as verified",
        file="echelon/audit/incremental.py",
        find="if report.errors > errors:",
        replace="if False:",
        tests=("tests/audit/test_incremental.py::test_an_error_is_found_again_and_never_kept_as_verified",),
        why="What once did not verify would be part of what an incremental verification goes on from.",
    ),
    Mutation(
        name="a state stands on no missing delta",
        file="echelon/audit/incremental.py",
        find="if self._short:",
        replace="if False:",
        tests=(
            "tests/audit/test_incremental.py::test_a_refusal_of_an_offset_that_is_not_there_yet_is_waited_for",
        ),
        why="Of a log that was read while deltas were missing, another report would be given later than of the whole.",
    ),
    Mutation(
        name="what crossed is what was derived",
        file="echelon/audit/boundary.py",
        find="elif derived.values != values:",
        replace="elif False:",
        tests=("tests/audit/test_boundary.py::test_a_gate_that_signs_another_summary_is_found",),
        why="A gate could sign any sum, and the boundary's own auditor would not see it.",
    ),
    Mutation(
        name="an auditor reads only members' records",
        file="echelon/actors/verified_records.py",
        find="if not envelope.verified(public, record.topic):",
        replace="if False:",
        tests=("tests/audit/test_boundary.py::test_what_strangers_write_is_refused_and_changes_nothing",),
        why="Whoever writes on a boundary's broker could speak for its aggregator and its devices.",
    ),
    Mutation(
        name="of two against two, all are named",
        file="echelon/audit/times.py",
        find="parted = 2 * len(off) >= len(times)",
        replace="parted = False",
        tests=(
            "tests/adversary/test_lying_clocks.py::test_of_two_against_two_all_are_named_and_nobody_alone",
        ),
        why="Two that lie together could have the audit name the honest ones in their place.",
    ),
    Mutation(
        name="an opening answers what was asked",
        file="echelon/audit/openings.py",
        find="if (self.run, self.boundary, self.window, self.index, self.size) != asked:",
        replace="if False:",
        tests=("tests/audit/test_openings.py::test_another_device_of_the_same_window_is_no_answer",),
        why="A boundary would show a device of its own choice instead of the one that was drawn.",
    ),
    Mutation(
        name="a nonce chooses what is opened",
        file="echelon/audit/openings.py",
        find="if self != Request.choose(manifest, self.boundary, deltas[: self.size], bytes.fromhex(self.nonce)):",
        replace="if False:",
        tests=("tests/audit/test_openings.py::test_who_asks_cannot_choose",),
        why="Somebody outside could ask for every device of a window, one after the other.",
    ),
    Mutation(
        name="whose chunk it is",
        file="echelon/actors/verified_records.py",
        find="if not verify_once(public, chunk.signature, chunk.signed_bytes(self.membership.run)):",
        replace="if False:",
        tests=("tests/actors/test_chunk_senders.py",),
        why="A device could void another's upload by a chunk under its key.",
    ),
    Mutation(
        name="length of an open payload",
        file="echelon/audit/log.py",
        find="if chunk.length > self._largest:",
        replace="if False:",
        tests=("tests/audit/test_log.py",),
        why="One gate could fill the controller's memory and state with chunks of nothing.",
    ),
    Mutation(
        name="inputs before their window",
        file="echelon/rounds/gate/early_inputs.py",
        find="if self._bytes[incoming.sender] + size > self._most:",
        replace="if False:",
        tests=("tests/rounds/gate/test_derivation.py",),
        why="A device could fill whoever derives with uploads of windows to come.",
    ),
    Mutation(
        name="what a log's file holds",
        file="echelon/bus/sqlite_format.py",
        find="if strange or len(rows) != len(_OBJECTS):",
        replace="if False:",
        tests=("tests/audit/test_hostile_sources.py",),
        why="A view in place of a table could keep an auditor busy for ever.",
    ),
    Mutation(
        name="a topic that is behind the others",
        file="echelon/actors/controller.py",
        find="if not self._catching_up.allows(self.core.newest + 1):",
        replace="if False:",
        tests=("tests/sim/test_explorer.py::test_what_was_found_once_stays_mended",),
        why="An honest controller would look as if it had withheld the deltas of a topic that is slow.",
    ),
    Mutation(
        name="a witness restarted behind the last announcement",
        file="echelon/actors/witness.py",
        find="self._last_seen = self._last_seen or record.key == LAST",
        replace="pass",
        tests=("tests/sim/test_explorer.py::test_what_was_found_once_stays_mended",),
        why="A witness that restarts after the run was closed would wait for ever.",
    ),
    Mutation(
        name="what lies beside the adapter",
        file="echelon/sources/exchange.py",
        find="if name not in (CONFIG_FILE, WEIGHTS_FILE) or kind:",
        replace="if kind:",
        tests=("tests/audit/test_hostile_sources.py",),
        why="A pickle in the adapter's folder would pass the audit.",
    ),
    Mutation(
        name="floor of weight of a block",
        file="echelon/secagg/context.py",
        find="return not weighed or partial_weight_holds(weights, lost, self.k_min, self.colluding)",
        replace="return True",
        tests=("tests/secagg/test_partial_sums.py",),
        why="Where models are cut differently, one heavy update would stand out of a block's sum.",
    ),
    Mutation(
        name="floor of a rank block",
        file="echelon/secagg/partial_sums.py",
        find="found[block] = RankSum(devices if cap else frozenset(), cap)",
        replace="found[block] = RankSum(devices, cap or context.weight_max)",
        tests=("tests/rounds/test_rank_blocks.py",),
        why="A window with one device of a rank would have no sum again and again, or show that device's rows.",
    ),
    Mutation(
        name="rank block of an included set",
        file="echelon/secagg/client.py",
        find="self._hold(lambda: check_included(self.context, self._adding, u2=self._u2, u3=u3))",
        replace="pass",
        tests=("tests/rounds/test_rank_blocks.py",),
        why="An aggregator could leave out all devices of a rank but one, and read its rows.",
    ),
    Mutation(
        name="cap within a rank block",
        file="echelon/rounds/device/member.py",
        find="return [(self.blocks[block][0], cap) for block, cap in client.block_caps(shares).items()]",
        replace="return []",
        tests=("tests/rounds/test_rank_blocks.py",),
        why="A device that trained more than the few others of its rank would stand out of their rows.",
    ),
    Mutation(
        name="two windows that differ by one of a rank",
        file="echelon/rounds/device/member.py",
        find="for block in range(len(self._manifest.rank_blocks) or 1):",
        replace="for block in range(1):",
        tests=("tests/rounds/test_rank_blocks.py",),
        why="Two sums over one version could be subtracted to the rows of one device.",
    ),
    Mutation(
        name="ranks in a window's context",
        file="echelon/secagg/context.py",
        find="fields.append([self.rank_blocks, [member.reach for member in self.members]])",
        replace="pass",
        tests=("tests/secagg/test_adversary.py",),
        why="Devices and aggregator could take part in one window, and disagree on who adds to which rows.",
    ),
    Mutation(
        name="adapter of a relayed commit",
        file="echelon/rounds/gate/relayed.py",
        find="if written != derived:",
        replace="if False:",
        tests=("tests/rounds/gate/test_relayed.py",),
        why="A controller could have boundaries train from an adapter that no delta gives.",
    ),
    Mutation(
        name="weights of a relayed commit",
        file="echelon/rounds/gate/relayed.py",
        find="if commit.merged != merged:",
        replace="if False:",
        tests=("tests/rounds/gate/test_relayed.py",),
        why="A relayed commit could say of its deltas what is not so, and be mirrored all the same.",
    ),
    Mutation(
        name="adapter that a commit owes",
        file="echelon/actors/mirror.py",
        find="if message.relayed and not may_relay(relay.terms, message.commit):",
        replace="if False:",
        tests=("tests/actors/test_relay.py",),
        why="No late reader would ever find a whole adapter.",
    ),
    Mutation(
        name="short ring that overflows",
        file="echelon/secagg/ring.py",
        find="if self.cohort_max * self.largest >= 1 << self.ring_bits - 1:",
        replace="if self.cohort_max * self.largest >= 1 << 31:",
        tests=("tests/secagg/test_short_ring.py",),
        why="Sums of 16 bits would wrap around, and nobody would see it.",
    ),
)


class Verdict(Enum):
    """What became of one mutation."""

    KILLED = "killed"
    SURVIVED = "survived"
    NO_MATCH = "does not fit the source"
    NOT_GREEN = "tests not green before"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Outcome:
    """A verdict with its evidence: the first failing test, or what went wrong; `seconds` of wall clock."""

    mutation: Mutation
    verdict: Verdict
    detail: str
    seconds: float


class MutationError(Exception):
    """A mutation cannot be applied to the source as it stands."""


def mutated(source: str, mutation: Mutation) -> str:
    """The source with the mutation in it.

    Raises:
        MutationError: the text is not there exactly once, nothing would change, or the result is not Python.
    """
    pattern = re.compile(mutation.find if mutation.regex else re.escape(mutation.find.strip()), re.MULTILINE)
    matches = list(pattern.finditer(source))
    if len(matches) != 1:
        raise MutationError(
            f"{mutation.file}: the text to replace stands there {len(matches)} times, not once"
        )
    [match] = matches
    new = match.expand(mutation.replace) if mutation.regex else mutation.replace.strip()
    result = source[: match.start()] + new + source[match.end() :]
    if result == source:
        raise MutationError(f"{mutation.file}: the replacement changes nothing")
    try:
        changed = ast.dump(ast.parse(result)) != ast.dump(ast.parse(source))
    except SyntaxError as error:
        raise MutationError(f"{mutation.file}: the replacement is not Python: {error}") from error
    if not changed:
        raise MutationError(f"{mutation.file}: the replacement changes a comment or white space only")
    return result


@dataclass(frozen=True)
class PytestRun:
    """One run of pytest: its exit status (None: it did not end in time) and the first failure it reported."""

    status: int | None
    first: str


def run_tests(tree: Path, tests: Iterable[str]) -> PytestRun:
    """Run the named tests in a copy of the tree, against the package in that copy."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),  # before an installed or editable `echelon`, in child processes too
        "PYTHONDONTWRITEBYTECODE": "1",  # a cached .pyc of the same second and size would hide the mutation
        "CI": "true",  # the same hypothesis examples before and after
    }
    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "--color=no"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return PytestRun(None, f"the tests did not end within {LIMIT_S:.0f} s")
    reported = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    return PytestRun(done.returncode, (reported or last or ["pytest printed nothing"])[0])


def try_mutation(tree: Path, mutation: Mutation, green: dict[tuple[str, ...], PytestRun]) -> Outcome:
    """Apply one mutation in the tree (a copy), run its tests, and put the file back.

    Args:
        tree: the copy.
        mutation: what to break.
        green: runs of the same tests on the unchanged tree; filled as needed.
    """
    started = time.monotonic()

    def outcome(verdict: Verdict, detail: str) -> Outcome:
        return Outcome(mutation, verdict, detail, time.monotonic() - started)

    path = tree / mutation.file
    if not path.is_file():
        return outcome(Verdict.NO_MATCH, f"there is no file {mutation.file}")
    original = path.read_text(encoding="utf-8")
    try:
        broken = mutated(original, mutation)
    except MutationError as error:
        return outcome(Verdict.NO_MATCH, str(error))

    if mutation.tests not in green:
        green[mutation.tests] = run_tests(tree, mutation.tests)
    before = green[mutation.tests]
    if before.status != PYTEST_GREEN:
        return outcome(Verdict.NOT_GREEN, before.first)

    path.write_text(broken, encoding="utf-8")
    try:
        after = run_tests(tree, mutation.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if after.status == PYTEST_RED:
        return outcome(Verdict.KILLED, after.first)
    if after.status == PYTEST_GREEN:
        return outcome(Verdict.SURVIVED, "every test passed without it")
    # Not "red": a module that cannot be imported any more says nothing about the condition.
    return outcome(Verdict.UNDECIDED, f"pytest ended with {after.status}: {after.first}")


def run(mutations: Sequence[Mutation], root: Path = ROOT, console: Console | None = None) -> list[Outcome]:
    """Try each mutation in a temporary copy of `root`; say on `console` what is being done."""
    console = console or Console(stderr=True)
    outcomes: list[Outcome] = []
    green: dict[tuple[str, ...], PytestRun] = {}
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(root, tree, ignore=LEFT_BEHIND, symlinks=True)
        for number, mutation in enumerate(mutations, 1):
            console.print(f"[{number}/{len(mutations)}] {mutation.name} ...", markup=False, highlight=False)
            outcomes.append(try_mutation(tree, mutation, green))
    return outcomes


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print the outcomes as a table."""
    table = Table(title="Mutations", show_lines=True)
    for heading in ("condition", "file", "verdict", "s", "noticed by, or what went wrong"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "s" else "left")
    for outcome in outcomes:
        colour = "green" if outcome.verdict is Verdict.KILLED else "red"
        table.add_row(
            f"{outcome.mutation.name}\n[dim]{outcome.mutation.why}[/dim]",
            outcome.mutation.file,
            f"[{colour}]{outcome.verdict.value}[/{colour}]",
            f"{outcome.seconds:.1f}",
            textwrap.shorten(outcome.detail, 160).replace("[", r"\["),
        )
    console.print(table)


def main(
    arguments: Sequence[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS, root: Path = ROOT
) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Break named conditions of the protocol and see the tests go red."
    )
    parser.add_argument("name", nargs="*", help="only mutations whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="print names and reasons, and run nothing")
    asked = parser.parse_args(arguments)

    chosen = [m for m in mutations if not asked.name or any(part in m.name for part in asked.name)]
    if not chosen:
        print("mutate: no mutation of that name; `--list` shows what there is", file=sys.stderr)
        return 2
    if asked.list:
        for mutation in chosen:
            print(f"{mutation.name}\n    {mutation.file}\n    {mutation.why}")
        return 0

    outcomes = run(chosen, root)
    show(outcomes, Console())
    killed = sum(outcome.verdict is Verdict.KILLED for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} mutations turned tests red")
    return 0 if killed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
