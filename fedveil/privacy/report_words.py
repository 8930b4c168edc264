"""What a privacy report says in words: claim, trust, assumptions, and what is not covered."""

from __future__ import annotations

import math

from fedveil.privacy.report_facts import Mechanism, RunFacts, SharedNoise

__all__ = [
    "assumptions_of",
    "neighbours_of",
    "noise_in_words",
    "not_covered_by",
    "plain_words",
    "rounded_down",
    "rounded_up",
    "statement_of",
    "trust_of",
]


def rounded_up(epsilon: float) -> str:
    """Return an epsilon to three decimals, never less than it is."""
    return f"{math.ceil(epsilon * 1e3 - 1e-9) / 1e3:.3f}"


def rounded_down(bound: float) -> str:
    """Return a lower bound to three decimals, never more than it is."""
    return f"{math.floor(bound * 1e3 + 1e-9) / 1e3:.3f}"


def neighbours_of(mechanism: Mechanism) -> str:
    """Return the neighbouring relation."""
    if mechanism.unit == "record":
        return "two data sets of a client are neighbours when one has one training record more"
    if mechanism.unit == "client":
        return "two federations are neighbours when one has one client more, with all that it holds"
    return "none"


def noise_in_words(mechanism: Mechanism) -> str:
    """Return who adds the noise."""
    if mechanism.noise == "local":
        return "each client, before anything leaves it"
    if mechanism.noise == "distributed":
        return "all clients in shares, before anything leaves them; sums alone are unmasked"
    return "the server, to the sum of the updates" if mechanism.noise == "central" else "nobody"


def statement_of(mechanism: Mechanism, epsilon: float | None) -> str:
    """Return the claim in one sentence.

    Parameters
    ----------
    mechanism : Mechanism
        How the noise was made.
    epsilon : float, optional
        The largest of any client.
    """
    m = mechanism
    if m.unit == "none":
        return (
            'No privacy is claimed: the run asked for dp.unit = "none". Clients sent exact '
            "weights, from which records can be inferred."
        )
    if m.insecure_seed:
        return (
            "No privacy is claimed: the run used dp.insecure_seed, so that anybody who knows the "
            "seed can subtract the noise."
        )
    shown = rounded_up(epsilon or 0.0)
    whom = {
        "record": "whether one record was among the client's training records",
        "client": "whether the client took part, with all that it holds,",
    }[m.unit]
    what = {
        "local": "anything that the client sent",
        "distributed": "any sum over the clients that was unmasked, and of every model made of it,",
        "central": "every model that was published",
    }[m.noise if m.noise != "none" else "local"]
    return (
        f"For every client, training is ({shown}, {m.delta:g})-differentially private: {whom} "
        f"changes the probability of {what} by a factor of at most e^{shown}, but for a "
        f"probability of {m.delta:g}."
    )


def plain_words(facts: RunFacts) -> str:
    """Return how the mode protects, for whoever is no engineer; empty where nothing is claimed."""
    m = facts.mechanism
    if not m.claims:
        return ""
    if m.mode == "record/local":
        return (
            "What each of them did send was blurred by random noise before it left, so strongly "
            "that it hardly depends on any single record. Nobody has to be trusted for that but "
            "the data owner's own machine."
        )
    if m.noise == "distributed":
        assert m.shared is not None  # noqa: S101  # narrows the type
        whom = "any single record" if m.unit == "record" else "any single data owner"
        sent = "a sum of its training step" if m.unit == "record" else "its trained update"
        return (
            f"What each of them did send was {sent}, blurred by its own share of random noise, "
            "and masked, so that the server could open only the sum over all of them. The shares "
            f"add up in that sum, so strongly that it hardly depends on {whom}. One share alone "
            "would protect little: the protection rests on the masking, and on at most "
            f"{m.shared.colluding} of the data owners in a sum working together with the server."
        )
    seen = (
        "the exact sum over all of them, never one owner's part"
        if facts.secagg
        else "each owner's exact update"
    )
    return (
        f"The server saw {seen}, and blurred the sum by random noise before it made the next "
        "model of it, so strongly that the model hardly depends on any single data owner. That "
        "protects from everybody who has the models, and not from the server itself: it is "
        "trusted to add the noise, and to forget what it saw."
    )


def trust_of(facts: RunFacts) -> tuple[str, ...]:
    """Return who must be trusted, and who could learn what."""
    m = facts.mechanism
    if not m.claims:
        who = "the sum of the clients' updates" if facts.secagg else "the clients' updates"
        return (f"Everybody who sees {who} or the model, for want of any guarantee.",)
    own = (
        "Each data owner's own machine, its operating system's random numbers, and the Fedveil, "
        "Opacus and PyTorch code that runs on it"
    )
    if m.noise == "local":
        seen = (
            "The server sees sums over clients, by secure aggregation, and nobody's own update."
            if facts.secagg
            else "The server sees each client's update, with that client's noise in it."
        )
        return (
            f"{own}: the noise is added there.",
            "Nobody else: not the server, not the other clients, not whoever holds the model. "
            + seen,
        )
    if m.shared is not None:
        return _trust_in_shares(own, m.shared)
    seen = (
        "the exact sum of the clients' clipped updates in each round"
        if facts.secagg
        else "each client's clipped update, exactly"
    )
    return (
        "The server is trusted to add the noise, with random numbers that nobody knows, and to "
        f"keep to itself what it saw before: {seen}. Against the server nothing is claimed.",
        f"{own}: the update is clipped there.",
        "Nobody else: the other clients, and whoever holds the models, see the noise of all "
        "rounds in full.",
    )


def _trust_in_shares(own: str, shared: SharedNoise) -> tuple[str, ...]:
    return (
        f"{own}: it clips, rounds and adds its share of the noise.",
        f"All but {shared.colluding} of the clients in a sum: so many may collude with the server "
        f"and tell it their shares; the other {shared.honest} of at least {shared.min_survivors} "
        "bring the whole noise. Were there more, the noise would shrink with the honest ones "
        "left, and epsilon grow.",
        "Not the server: it sees sums over clients alone, by secure aggregation. Each client "
        "refuses, by itself, a round whose sum might hold fewer clients. Whoever broke the masks "
        "would see one client's share of the noise beside its contribution, which protects little.",
        "Not whoever holds the models, which are made of those sums.",
    )


def assumptions_of(mechanism: Mechanism) -> tuple[str, ...]:
    """Return what the claim rests on, one sentence each; nothing where nothing is claimed."""
    m = mechanism
    if not m.claims:
        return ()
    lines = []
    if m.unit == "record":
        lines += [
            "No record lies with two clients, and no two records belong to one person who is to "
            "be protected as one.",
            "Each step takes each record with probability "
            f"{m.sampling_rate:g}, independently, from a cryptographic generator (Poisson "
            "sampling).",
            _record_denominator(m),
        ]
    else:
        lines += [
            "Each person's records lie with one client, and each client takes part under one name.",
            f"Every client's weight is 1, and sums are divided by {m.cohort}, the planned number "
            "of clients, whoever drops out.",
        ]
    if m.shared is not None:
        lines += [
            f"At most {m.shared.colluding} of the clients in a sum collude with the server or with "
            "each other; a client that looks at a model knows its own share of the noise and "
            "counts as one of them.",
            "Secure aggregation lets nobody see anything but the sum.",
        ]
    if m.adaptive is not None:
        lines.append(
            f"The clip norm follows the {m.adaptive.target_quantile:g} quantile of the updates' "
            "norms by bits under noise of their own, whose cost is within the epsilon above."
        )
    return (
        *lines,
        "The cohort of a round is known to the server and amplifies nothing.",
        "An attempt at a round that was interrupted counts in full.",
        "The figures are for this run alone; runs on the same records add up.",
    )


def _record_denominator(m: Mechanism) -> str:
    factors = [f"{m.sampling_rate:g}", f"{m.nominal_records}"]
    total = m.sampling_rate * m.nominal_records
    if m.noise == "distributed":
        factors.append(f"{m.cohort}")
        total *= m.cohort
    return (
        f"Noisy sums are divided by {' x '.join(factors)} = {total:g}, a configured constant; no "
        "number counted from private records is released."
    )


def not_covered_by(mechanism: Mechanism, *, public_test: bool, secagg: bool) -> tuple[str, ...]:
    """Return what the claim does not speak of, one sentence each."""
    m = mechanism
    lines = []
    if m.claims:
        whole = "a client or a population" if m.unit == "record" else "a population"
        lines += [
            f"Facts about {whole} as a whole, which the model is meant to learn.",
            "That a client takes part, when, and how long it computes (timing).",
            "A refusal: a client that declines a round tells that its settings or data forbid it.",
            "Choosing settings by looking at results of earlier runs on the same records.",
        ]
        if m.noise == "central":
            lines.append("What the server sees before it adds the noise.")
        if m.shared is not None and m.shared.colluding == 0:
            lines.append(
                "The other clients: dp.colluding = 0 counts every share of the noise, and each "
                "client can take off its own."
            )
        if m.metrics == "clear":
            lines.append(
                "Metrics on the clients' test records: they were released exactly (dp.metrics = "
                '"clear"), with no guarantee for the test records.'
            )
        if m.metrics == "noisy":
            lines.append(
                "Nothing of the noisy metrics: their cost is within the epsilon above, for the "
                "training and the test records alike."
            )
    if public_test:
        lines.append(
            "The test set that accuracy is measured on: it is declared public and has no guarantee."
        )
    lines.append(_limits_of_secure_aggregation(m, secagg=secagg))
    return tuple(lines)


def _limits_of_secure_aggregation(m: Mechanism, *, secagg: bool) -> str:
    if not secagg:
        return "Secure aggregation is not in use: the server can tell the clients' updates apart."
    borne = (
        "Secure aggregation: fewer than a third of up to 100 clients collude with the server "
        "(above 100, the configured share), and each client's roster is right. Whoever colludes "
        "with more can tell updates apart"
    )
    if m.shared is None:
        return f"{borne}; the epsilon holds all the same where one is claimed."
    return f"{borne}, and then the epsilon does not hold."
