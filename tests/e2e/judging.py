"""What a fleet that lost workers must have delivered; every finding is a sentence."""

from collections.abc import Iterable, Mapping

from tests.e2e.streams import Answered


def disagreements(reference: Mapping[str, str], answers: Iterable[Answered], tokens: int) -> list[str]:
    """Answers that differ from an undisturbed fleet's, failed, or do not add up."""
    found: list[str] = []
    for answer in answers:
        name = answer.prompt
        if answer.error or not answer.done:
            found.append(f"{name}: failed: {answer.error or 'no [DONE]'}")
        elif answer.text != reference[name]:
            at = next(
                (i for i, (a, b) in enumerate(zip(answer.text, reference[name], strict=False)) if a != b),
                min(len(answer.text), len(reference[name])),
            )
            found.append(f"{name}: differs at character {at} of {len(reference[name])}")
        elif answer.usage.get("completion_tokens") != tokens:
            found.append(f"{name}: {answer.usage} instead of {tokens} tokens")
    return found
