import copy
import hashlib
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.boundary import load_boundary
from echelon.training.data.encode import Document, encode
from echelon.training.data.holdout import SHORTEST, split, split_digest
from echelon.training.data.packing import Order, pack_training, pack_validation
from echelon.training.data.partition import deal, fill_empty_hands, shares_of
from echelon.training.data.sources import RawDocument, Turn, read_source

EOS_ID = 0


def document(name, size=5, domain="x", *, counted=None):
    tokens = np.frombuffer(hashlib.shake_256(name.encode()).digest(size), np.uint8).astype(np.int32) + 1
    mask = np.ones(size, np.bool_) if counted is None else np.asarray(counted, np.bool_)
    return Document(name, domain, tokens, mask, open_ended=bool(mask.all()))


@st.composite
def documents(draw, minimum=2, maximum=25):
    sizes = draw(st.lists(st.integers(1, 60), min_size=minimum, max_size=maximum))
    return [document(f"d{i}", size, draw(st.sampled_from("xyz"))) for i, size in enumerate(sizes)]


def ids(docs):
    return [d.id for d in docs]


# ------------------------------------------------------------------------------------------------------ split


@given(documents(), st.floats(0.01, 0.5), st.integers(0, 3))
def test_split_is_disjoint_complete_and_never_empty(docs, fraction, seed):
    training, validation = split(docs, fraction, 10**9, seed)
    assert training
    assert validation
    held = {name.removesuffix("#end") for name in ids(validation)}
    shared = {name for name in ids(validation) if name.endswith("#end")}
    assert sorted({*ids(training), *held}) == sorted(ids(docs))
    assert len(training) + len(validation) == len(docs) + len(shared)
    assert sum(d.size for d in training) + sum(d.size for d in validation) == sum(d.size for d in docs)
    total = sum(d.size for d in docs)
    assert sum(d.size for d in validation) <= max(fraction * total, min(d.size for d in docs))


@given(documents(), st.integers(0, 3))
def test_split_does_not_depend_on_the_order_given(docs, seed):
    forward, backward = split(docs, 0.3, 10**9, seed), split(docs[::-1], 0.3, 10**9, seed)
    assert ids(forward[0]) == ids(backward[0])
    assert split_digest(forward[1]) == split_digest(backward[1])


@given(documents(), st.integers(1, 40))
def test_the_cap_on_validation_holds_and_leaves_training_alone(docs, cap):
    training, whole = split(docs, 0.5, 10**9, 0)
    capped_training, capped = split(docs, 0.5, cap, 0)
    assert 0 < sum(d.size for d in capped) <= cap
    assert len(capped) <= max(1, cap // SHORTEST) or cap >= SHORTEST * len(whole)
    assert ids(capped_training) == ids(training)
    begins = {d.id: d.tokens for d in whole}
    assert all(np.array_equal(d.tokens, begins[d.id][: d.size]) for d in capped)


def test_another_seed_gives_another_split():
    docs = [document(f"d{i}") for i in range(30)]
    assert ids(split(docs, 0.2, 99, 0)[1]) != ids(split(docs, 0.2, 99, 1)[1])


def test_split_digest_is_over_lengths_ids_and_masks():
    docs = [document("a", 2), document("b", 1, counted=[True])]
    expected = hashlib.sha256()
    for d in docs:
        expected.update(struct.pack("<I", d.size) + struct.pack(f"<{d.size}I", *d.tokens) + b"\1" * d.size)
    assert split_digest(docs) == expected.digest()
    assert split_digest(docs[::-1]) != expected.digest()


# -------------------------------------------------------------------------------------------------- partition


def partitioned(docs, devices, partition, seed=0):
    alpha = float(partition[10:-1]) if partition.startswith("dirichlet") else None
    shares = shares_of(docs, devices, alpha, partition == "by-domain", seed)
    return shares, deal(docs, shares, devices, seed)


PARTITIONS = st.sampled_from(["iid", "by-domain", "dirichlet(0.1)", "dirichlet(10)"])


@given(documents(), st.integers(1, 6), PARTITIONS, st.integers(0, 3))
def test_every_document_goes_to_exactly_one_device(docs, devices, partition, seed):
    shares, hands = partitioned(docs, devices, partition, seed)
    assert len(hands) == devices
    assert sorted(d.id for hand in hands for d in hand) == sorted(ids(docs))
    assert all(share.sum() == pytest.approx(1) and (share >= 0).all() for share in shares.values())
    if len(docs) >= devices:
        filled = fill_empty_hands(hands)
        assert all(filled)
        assert sorted(d.id for hand in filled for d in hand) == sorted(ids(docs))


@given(documents(), st.integers(1, 6), st.sampled_from([0.05, 0.5, 50.0]), st.integers(0, 3))
def test_tokens_follow_the_dirichlet_draw_up_to_one_document(docs, devices, alpha, seed):
    shares, hands = partitioned(docs, devices, f"dirichlet({alpha})", seed)
    for domain, share in shares.items():
        members = [d for d in docs if d.domain == domain]
        total = sum(d.size for d in members)
        for device, hand in enumerate(hands):
            held = sum(d.size for d in hand if d.domain == domain)
            assert held < share[device] * total + max(d.size for d in members)


def test_a_small_alpha_is_less_equal_than_a_large_one():
    docs = [document(f"{domain}{i}", 10, domain) for domain in "abcdefgh" for i in range(20)]

    def inequality(alpha):
        shares, _ = partitioned(docs, 4, f"dirichlet({alpha})")
        return np.mean([share.max() for share in shares.values()])

    assert inequality(0.05) > 0.7
    assert inequality(100) < 0.35


@pytest.mark.slow
@given(documents(minimum=6), st.integers(2, 6), st.integers(0, 3))
def test_iid_hands_are_equal_up_to_one_document(docs, devices, seed):
    _, hands = partitioned(docs, devices, "iid", seed)
    loads = [sum(d.size for d in hand) for hand in hands]
    assert max(loads) - sum(loads) / devices < max(d.size for d in docs)


@given(documents(), st.integers(1, 3), st.integers(0, 3))
def test_by_domain_never_splits_a_domain_when_there_are_enough(docs, devices, seed):
    domains = {d.domain for d in docs}
    _, hands = partitioned(docs, devices, "by-domain", seed)
    if len(domains) >= devices:
        assert all(sum(any(d.domain == x for d in hand) for hand in hands) == 1 for x in domains)
    else:
        assert all(len({d.domain for d in hand}) <= 1 for hand in hands)


def test_another_seed_deals_otherwise():
    docs = [document(f"d{i}") for i in range(20)]
    assert ids(partitioned(docs, 2, "iid", 0)[1][0]) != ids(partitioned(docs, 2, "iid", 1)[1][0])


def test_fewer_documents_than_devices_is_refused():
    with pytest.raises(ConfigError, match="use fewer of them"):
        fill_empty_hands([[document("a")], [], [document("b")], []])


# ---------------------------------------------------------------------------------------------------- packing


@given(documents(minimum=1), st.integers(2, 20))
def test_packing_keeps_every_token_once_in_order(docs, length):
    blocks = pack_training(docs, length, EOS_ID)
    targets = np.concatenate([t[1 : n + 1] for t, n in zip(blocks.tokens, blocks.lengths, strict=True)])
    expected = np.concatenate([np.append(d.tokens, EOS_ID) for d in docs])
    np.testing.assert_array_equal(targets, expected)
    assert blocks.tokens.shape[1] == length + 1
    assert np.count_nonzero(blocks.counted) == expected.size
    np.testing.assert_array_equal(blocks.tokens[1:, 0], blocks.tokens[:-1, -1])
    assert (blocks.lengths[:-1] == length).all()


@given(documents(minimum=1), st.integers(2, 20))
def test_validation_blocks_hold_one_document_each(docs, length):
    blocks = pack_validation(docs, length, EOS_ID)
    alone = [pack_validation([d], length, EOS_ID) for d in docs]
    assert len(blocks) == sum(map(len, alone))
    expected = sorted(row.tobytes() for part in alone for row in part.tokens)
    assert sorted(row.tobytes() for row in blocks.tokens) == expected
    assert np.count_nonzero(blocks.counted) == sum(d.size + 1 for d in docs)
    assert (np.diff(blocks.lengths) <= 0).all()


def test_blocks_without_a_counted_target_are_dropped():
    chat = document("c", 12, counted=[False] * 8 + [True] * 4)
    blocks = pack_training([chat], 4, EOS_ID)
    assert np.count_nonzero(blocks.counted) == 4  # neither the prompt nor the mark between documents
    assert len(blocks) < 4
    assert blocks.counted.any(axis=1).all()


def test_no_documents_pack_to_no_validation_blocks():
    assert len(pack_validation([], 8, EOS_ID)) == 0


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 25))
def test_order_reads_every_block_once_per_epoch(count, cursor, amount):
    whole = Order(1, "d", count).take(0, count * 8)
    for epoch in range(8):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == list(range(count))
    if cursor + amount <= whole.size:
        np.testing.assert_array_equal(
            Order(1, "d", count).take(cursor, amount), whole[cursor : cursor + amount]
        )


def test_order_depends_on_seed_and_device():
    orders = [Order(seed, device, 50).take(0, 50).tobytes() for seed in (0, 1) for device in ("a", "b")]
    assert len(set(orders)) == 4
    golden = [2, 1, 0, 4, 3]
    assert Order(0, "a", 5).take(0, 5).tolist() == golden


# ------------------------------------------------------------------------------------------------------
# sources


def test_stdlib_reads_packages_and_modules_without_their_tests():
    docs = read_source(DataSettings(source="stdlib:json+textwrap"))
    assert {d.domain for d in docs} == {"json", "textwrap"}
    assert "json/decoder.py" in ids(docs)
    assert "textwrap.py" in ids(docs)
    unit = read_source(DataSettings(source="stdlib:unittest"))
    assert not any("/test/" in d.id for d in unit)


def test_text_files_take_their_folder_as_domain(corpus):
    assert len({d.domain for d in read_source(DataSettings(source=f"text:{corpus}/**/*.txt"))}) == 2
    assert len({d.domain for d in read_source(DataSettings(source=f"text:{corpus}/cats/*.txt"))}) == 6


ROWS = [
    {"text": "one", "kind": "p", "ask": "q1", "reply": "a1"},
    {"text": "  ", "kind": "p", "ask": "q2", "reply": "a2"},
    {"text": "three", "kind": "q", "ask": "q3", "reply": " "},
]


def as_jsonl(folder):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return f"jsonl:{folder}/rows.jsonl"


def as_parquet(folder):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet")
    return f"parquet:{folder}/rows.parquet"


def as_hf(folder):
    pytest.importorskip("datasets")
    from datasets import Dataset

    (folder / "set").mkdir()
    Dataset.from_list(ROWS).to_parquet(str(folder / "set" / "train.parquet"))
    return f"hf:{folder}/set"


@pytest.mark.parametrize("write", [as_jsonl, as_parquet, as_hf])
def test_rows_become_documents(write, tmp_path):
    source = write(tmp_path)
    docs = read_source(DataSettings(source=source, domain_field="kind", max_left_out=0.5))
    assert [(d.content, d.domain) for d in docs] == [("one", "p"), ("three", "q")]
    chat = read_source(
        DataSettings(source=source, prompt_field="ask", answer_field="reply", max_left_out=0.5)
    )
    assert [d.content[1] for d in chat] == [Turn("assistant", "a1"), Turn("assistant", "a2")]
    assert len(read_source(DataSettings(source=source, text_field="ask", max_documents=2))) == 2


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("stdlib:no_such_package", "no_such_package"),
        ("stdlib:../etc", "not a module name"),
        ("text:/nowhere/*.txt", "matches no file"),
        ("hf:no-such-set-anywhere", "jsonl"),
    ],
)
def test_a_source_that_is_not_there_is_refused(source, says):
    with pytest.raises(ConfigError, match=says):
        read_source(DataSettings(source=source))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "not an object"),
        ('{"a":1}', "it has: a"),
        ('{"text":1}', "expected text"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(line, says, tmp_path):
    (tmp_path / "r.jsonl").write_text('{"text":"x"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=says) as caught:
        read_source(DataSettings(source=f"jsonl:{tmp_path}/r.jsonl"))
    assert "r.jsonl:2" in str(caught.value)


def test_empty_or_unreadable_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ConfigError, match=r"no document to train on \(left out: empty text: 1\)"):
        read_source(DataSettings(source=f"text:{tmp_path}/*.txt"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(ConfigError, match=r"binary\.txt is not UTF-8"):
        read_source(DataSettings(source=f"text:{tmp_path}/*.txt"))
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="Parquet"):
        read_source(DataSettings(source=f"parquet:{tmp_path}/x.parquet"))


@pytest.mark.parametrize(
    "fields",
    [
        {"source": "ftp:x"},
        {"source": "text:"},
        {"source": "text:x", "partition": "dirichlet(0)"},
        {"source": "text:x", "partition": "random"},
        {"source": "text:x", "messages_field": "m"},
        {"source": "jsonl:x", "prompt_field": "p"},
        {"source": "jsonl:x", "prompt_field": "p", "answer_field": "a", "messages_field": "m"},
        {"source": "jsonl:x", "unknown": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValueError, match="validation error"):
        DataSettings(**fields)


# -------------------------------------------------------------------------------------------------------
# encode


def conversation(*turns):
    return RawDocument("c", "c", tuple(Turn(role, text) for role, text in turns))


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def counted_text(encoded, tokenizer):
    return tokenizer.decode(encoded.tokens[encoded.counted].tolist())


def test_loss_counts_the_answers_alone(chat_tokenizer):
    raw = conversation(
        ("system", "be"), ("user", "hi"), ("assistant", "yo"), ("user", "so"), ("assistant", "ok")
    )
    [encoded] = encode([raw], chat_tokenizer)
    whole = "<system>be<end><user>hi<end><assistant>yo<end><user>so<end><assistant>ok<end>"
    assert chat_tokenizer.decode(encoded.tokens.tolist()) == whole
    assert counted_text(encoded, chat_tokenizer) == "yo<end>ok<end>"


def test_without_a_template_the_plain_form_is_used(tokenizer):
    [encoded] = encode([conversation(("user", "hi"), ("assistant", "yo"))], tokenizer)
    assert tokenizer.decode(encoded.tokens.tolist()) == "### user\nhi\n\n### assistant\nyo<|end|>\n\n"
    assert counted_text(encoded, tokenizer).startswith("yo<|end|>")


def test_what_follows_the_last_answer_is_not_read(chat_tokenizer):
    [encoded] = encode([conversation(("user", "hi"), ("assistant", "yo"), ("user", "bye"))], chat_tokenizer)
    assert "bye" not in chat_tokenizer.decode(encoded.tokens.tolist())


def test_answers_are_found_although_the_template_rewrites_the_past(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE
    raw = conversation(("user", "yo"), ("assistant", "yo"), ("user", "so"), ("assistant", "ok"))
    [encoded] = encode([raw], chat_tokenizer)
    assert chat_tokenizer.decode(encoded.tokens.tolist()).startswith("4<user>yo<end><assistant>yo<end>")
    assert counted_text(encoded, chat_tokenizer).startswith("yo")
    assert "so" not in counted_text(encoded, chat_tokenizer)


def test_a_template_that_changes_answers_is_refused(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE.replace(
        "m.content", "m.content | upper"
    )
    with pytest.raises(ConfigError, match="changes what turn 2 says"):
        encode([conversation(("user", "hi"), ("assistant", "yo"))], chat_tokenizer)
    chat_tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ConfigError, match="refused the conversation"):
        encode([conversation(("user", "hi"), ("assistant", "yo"))], chat_tokenizer)


def test_texts_are_counted_whole(tokenizer):
    [encoded] = encode([RawDocument("t", "t", "the cat")], tokenizer)
    assert tokenizer.decode(encoded.tokens.tolist()) == "the cat"
    assert encoded.counted.all()


# ------------------------------------------------------------------------------------------------ the
# boundary


def test_the_validation_split_does_not_depend_on_devices_or_partition(corpus, tokenizer):
    def load(devices, partition):
        settings = DataSettings(
            source=f"text:{corpus}/**/*.txt", validation_fraction=0.3, partition=partition
        )
        return load_boundary(settings, devices, tokenizer, 16)

    one, four = load(["a"], "iid"), load(["a", "b", "c", "d"], "dirichlet(0.3)")
    assert one.validation_digest == four.validation_digest
    assert one.validation_tokens == four.validation_tokens
    rows = sorted(row.tobytes() for blocks in four.validation.values() for row in blocks.tokens)
    assert rows == sorted(row.tobytes() for row in one.validation["a"].tokens)
    assert sum(four.training_tokens.values()) == one.training_tokens["a"]
    again = load(["a", "b", "c", "d"], "dirichlet(0.3)")
    for device, blocks in four.training.items():
        np.testing.assert_array_equal(blocks.tokens, again.training[device].tokens)


@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.3)", "by-domain"])
@pytest.mark.parametrize("pattern", ["**/*.txt", "", "cats", "cats/*.txt", "rows.jsonl", "*.jsonl"])
def test_where_a_folder_lies_changes_nothing(pattern, partition, corpus, tokenizer, tmp_path, monkeypatch):
    """The same files at another place, and under a path that is spelled otherwise, give the same splits and shares."""
    made = {}
    for place in ("here", "there/below"):
        folder = tmp_path / place
        shutil.copytree(corpus, folder)
        lines = (json.dumps({"text": f"the cat number {number} sat"}) for number in range(30))
        (folder / "rows.jsonl").write_text("\n".join(lines))
        monkeypatch.chdir(folder.parent)
        for spelled in (folder, Path(folder.name), folder.parent / "." / folder.name):
            kind = "jsonl" if pattern.endswith("jsonl") else "text"
            source = f"{kind}:{spelled / pattern}"
            settings = DataSettings(source=source, validation_fraction=0.3, partition=partition)
            made[place, str(spelled)] = load_boundary(settings, ["a", "b"], tokenizer, 16)
    first, *others = made.values()
    assert others
    for other in others:
        assert other.validation_digest == first.validation_digest
        for device, blocks in first.training.items():
            np.testing.assert_array_equal(blocks.tokens, other.training[device].tokens)


def test_a_tokenizer_without_an_end_mark_is_refused(corpus, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ConfigError, match="end-of-sequence"):
        load_boundary(DataSettings(source=f"text:{corpus}/cats/*.txt"), ["a"], endless, 16)


def test_one_document_cannot_be_split(corpus, tokenizer):
    with pytest.raises(ConfigError, match="cannot be split"):
        load_boundary(DataSettings(source=f"text:{corpus}/cats/0.txt"), ["a"], tokenizer, 16)


def test_many_short_documents_leave_something_to_validate():
    docs = [document(f"d{i}", 20) for i in range(3000)]
    _, held = split(docs, 0.1, 160, 0)
    assert len(held) == 20
    assert all(d.size == 8 for d in held)
