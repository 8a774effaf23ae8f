"""Real envelopes, signed by stellar-sdk, as the ledger reads them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from hashlib import sha256

import pytest
from stellar_sdk import Account, Asset, Keypair, TransactionBuilder, TransactionEnvelope, xdr

from reference.billpay.contracts.ledger import DEMO_PROVIDERS, SANDBOX_PASSPHRASE
from reference.billpay.ledger import domain, friendbot, genesis
from reference.billpay.ledger.codec import Codec, MalformedEnvelope
from reference.billpay.ledger.domain import OpCode, Outcome, TxCode

Keys = Callable[[str], Keypair]
Pay = Callable[..., str]

CODEC = Codec(SANDBOX_PASSPHRASE)


def test_a_signed_payment_is_read_as_it_was_meant(keys: Keys, pay: Pay) -> None:
    ann, bob = keys("ann"), keys("bob")
    envelope = CODEC.decode(pay(ann, 12, bob.public_key, "3.5000001", bounds=(10, 99), memo="INV-1"))
    submission = envelope.submission
    assert submission.operations == (domain.Payment(ann.public_key, bob.public_key, 35_000_001),)
    assert (submission.source, submission.sequence, submission.max_fee) == (ann.public_key, 12, 100)
    assert (submission.min_time, submission.max_time) == (10, 99)
    assert submission.signed_by == {ann.public_key}
    assert not submission.stray_signatures
    assert (envelope.memo_type, envelope.memo) == ("text", "INV-1")


def test_its_hash_is_the_one_that_the_wallet_computes(keys: Keys, pay: Pay) -> None:
    xdr_text = pay(keys("ann"), 12, keys("bob").public_key, "1")
    assert CODEC.decode(xdr_text).hash == TransactionEnvelope.from_xdr(xdr_text, SANDBOX_PASSPHRASE).hash_hex()


def test_a_signature_of_another_network_is_none(keys: Keys, pay: Pay) -> None:
    envelope = pay(keys("ann"), 12, keys("bob").public_key, "1", passphrase="Test SDF Network ; September 2015")
    submission = CODEC.decode(envelope).submission
    assert submission.signed_by == frozenset()
    assert submission.stray_signatures


def test_a_signature_of_somebody_else_is_none(keys: Keys, pay: Pay) -> None:
    envelope = pay(keys("ann"), 12, keys("bob").public_key, "1", signers=(keys("eve"),))
    assert CODEC.decode(envelope).submission.signed_by == frozenset()


def test_a_second_signature_that_nothing_asks_for_is_a_stray_one(keys: Keys, pay: Pay) -> None:
    submission = CODEC.decode(
        pay(keys("ann"), 12, keys("bob").public_key, "1", signers=(keys("ann"), keys("eve")))
    ).submission
    assert submission.signed_by == {keys("ann").public_key}
    assert submission.stray_signatures


def test_a_changed_amount_breaks_the_signature(keys: Keys, pay: Pay) -> None:
    parsed = xdr.TransactionEnvelope.from_xdr(pay(keys("ann"), 12, keys("bob").public_key, "1"))
    assert parsed.v1 is not None
    payment = parsed.v1.tx.operations[0].body.payment_op
    assert payment is not None
    payment.amount = xdr.Int64(9_000_000_000)
    assert CODEC.decode(parsed.to_xdr()).submission.signed_by == frozenset()


def test_an_envelope_of_the_first_version_is_read_too(keys: Keys) -> None:
    ann = keys("ann")
    builder = TransactionBuilder(Account(ann.public_key, 11), SANDBOX_PASSPHRASE, 100, v1=False)
    envelope = builder.append_payment_op(keys("bob").public_key, Asset.native(), "1").add_time_bounds(0, 0).build()
    envelope.sign(ann)
    assert CODEC.decode(envelope.to_xdr()).submission.signed_by == {ann.public_key}


def test_a_fee_bump_is_not_supported(keys: Keys, pay: Pay) -> None:
    inner = TransactionEnvelope.from_xdr(pay(keys("ann"), 12, keys("bob").public_key, "1"), SANDBOX_PASSPHRASE)
    bump = TransactionBuilder.build_fee_bump_transaction(keys("eve"), 200, inner, SANDBOX_PASSPHRASE)
    bump.sign(keys("eve"))
    assert not CODEC.decode(bump.to_xdr()).submission.supported


def test_what_the_sandbox_does_not_know_is_marked(keys: Keys) -> None:
    ann = keys("ann")
    builder = TransactionBuilder(Account(ann.public_key, 11), SANDBOX_PASSPHRASE, 100).add_time_bounds(0, 0)
    credit = Asset("USD", keys("bob").public_key)
    builder.append_payment_op(keys("bob").public_key, credit, "1").append_manage_data_op("a", "b")
    submission = CODEC.decode(builder.build().to_xdr()).submission
    assert submission.operations == (domain.Unsupported(ann.public_key), domain.Unsupported(ann.public_key))
    bounded = TransactionBuilder(Account(ann.public_key, 11), SANDBOX_PASSPHRASE, 100).add_time_bounds(0, 0)
    bounded.append_bump_sequence_op(20).set_ledger_bounds(1, 2)
    assert not CODEC.decode(bounded.build().to_xdr()).submission.supported


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not base64!",
        "AAAA",
        "AAAAAg==",
        base64.b64encode(bytes(500)).decode(),
        base64.b64encode(b"\xff" * 500).decode(),
        "é" * 10,
    ],
)
def test_what_is_no_envelope_is_malformed(text: str) -> None:
    with pytest.raises(MalformedEnvelope):
        CODEC.decode(text)


def test_bytes_behind_an_envelope_make_it_malformed(keys: Keys, pay: Pay) -> None:
    raw = base64.b64decode(pay(keys("ann"), 12, keys("bob").public_key, "1"))
    with pytest.raises(MalformedEnvelope):
        CODEC.decode(base64.b64encode(raw + b"\0\0\0\0").decode())


@pytest.mark.parametrize("code", list(TxCode))
def test_each_outcome_has_its_result_in_xdr(code: TxCode) -> None:
    operations = (domain.Payment("a", "b", 1),)
    codes = {TxCode.SUCCESS: (OpCode.SUCCESS,), TxCode.FAILED: (OpCode.UNDERFUNDED,)}.get(code, ())
    result = xdr.TransactionResult.from_xdr(CODEC.result(Outcome(code, codes, 100), operations))
    assert result.fee_charged.int64 == 100
    name = code.value.replace("no_source_account", "no_account")
    assert result.result.code.name.lower().replace("_", "") == name.replace("_", "")


@pytest.mark.parametrize(
    ("operation", "code", "known"),
    [
        # As Horizon returned them on testnet, and as the friendbot of the Go SDK compares them.
        (domain.CreateAccount("a", "b", 1), OpCode.ALREADY_EXISTS, "AAAAAAAAAGT/////AAAAAQAAAAAAAAAA/////AAAAAA="),
        (domain.Payment("a", "b", 1), OpCode.UNDERFUNDED, "AAAAAAAAAGT/////AAAAAQAAAAAAAAAB/////gAAAAA="),
        (domain.Payment("a", "b", 1), OpCode.NO_DESTINATION, "AAAAAAAAAGT/////AAAAAQAAAAAAAAAB////+wAAAAA="),
        (domain.Payment("a", "b", 1), OpCode.BAD_AUTH, "AAAAAAAAAGT/////AAAAAf////8AAAAA"),
        (domain.Unsupported("a"), OpCode.NOT_SUPPORTED, "AAAAAAAAAGT/////AAAAAf////0AAAAA"),
        (domain.Unsupported("a"), OpCode.SUCCESS, "AAAAAAAAAGT/////AAAAAf////0AAAAA"),
    ],
)
def test_an_operations_result_is_the_networks_own(operation: domain.Operation, code: OpCode, known: str) -> None:
    assert CODEC.result(Outcome(TxCode.FAILED, (code,), 100), (operation,)) == known


def test_the_genesis_ledger_is_what_its_header_says() -> None:
    header = CODEC.header(
        sequence=genesis.GENESIS_LEDGER, previous_hash="0" * 64, close_time=0, fee_pool=0, envelopes=(), results=()
    )
    assert (header.xdr, header.hash) == (genesis.GENESIS_HEADER, genesis.GENESIS_HASH)


def test_the_published_addresses_belong_to_the_published_seeds() -> None:
    def address(name: str) -> str:
        return Keypair.from_raw_ed25519_seed(sha256(f"billpay sandbox {name}".encode()).digest()).public_key

    assert {name: address(name) for name in DEMO_PROVIDERS} == dict(DEMO_PROVIDERS)
    assert friendbot.key().public_key == genesis.FRIENDBOT
