"""What pydantic found wrong with a recipe, as one sentence in the user's words.

Keys are named by their full dotted path, without the union tags pydantic puts between; an unknown key names the nearest
one that exists, wherever it stands.
"""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from marcli.recipe.section import Section

WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text (quote it)",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "one of {expected}",
}


def sections_in(annotation: Any) -> list[type[Section]]:
    """Return the sections a field may hold: one, the members of a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return sections_in(get_args(annotation)[0])
    return [section for part in get_args(annotation) for section in sections_in(part)]


def kind_of(section: type[Section]) -> tuple[str, ...]:
    """Return the values of `kind` that choose `section` in its union."""
    return get_args(section.model_fields["kind"].annotation)


def all_keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo, type[Section]]]:
    """Yield every dotted key under `section` with its field and the class it belongs to."""
    for name, field in section.model_fields.items():
        yield prefix + name, field, section
        for inner in sections_in(field.annotation):
            yield from all_keys(inner, f"{prefix}{name}.")


def dotted(root: type[Section], location: tuple[int | str, ...]) -> str:
    """Return `location` of a pydantic error as a dotted key: union tags left out, list positions in brackets."""
    names: list[str] = []
    sections = [root]
    for part in location:
        if isinstance(part, int):
            names[-1] += f"[{part}]"
            continue
        if len(sections) > 1:
            tagged = [section for section in sections if part in kind_of(section)]
            if tagged:
                sections = tagged
                continue
        names.append(part)
        field = sections[0].model_fields.get(part) if sections else None
        sections = sections_in(field.annotation) if field else []
    return ".".join(names)


def nearest_key(root: type[Section], key: str) -> str | None:
    """Return the existing dotted key that `key` most likely meant, or None."""
    known = sorted({name for name, _, _ in all_keys(root)})
    parent, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.7)
    if close:
        return siblings[close[0]]
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(key, elsewhere, n=1, cutoff=0) or difflib.get_close_matches(key, known, n=1)
    return close[0] if close else None


def _unknown_key(root: type[Section], key: str, value: Any) -> str:
    while isinstance(value, dict) and value:  # name the leaf the user wrote, not the section it made
        leaf, value = next(iter(value.items()))
        key = f"{key}.{leaf}"
    owners = [section for name, _, section in all_keys(root) if name == key and "kind" in section.model_fields]
    if owners:
        kinds = " or ".join(repr(kind) for owner in owners for kind in kind_of(owner))
        return f"{key} only goes with {key.rpartition('.')[0]}.kind {kinds}: remove it, or change the kind"
    near = nearest_key(root, key)
    advice = f"did you mean {near}?" if near and near != key else "remove it"
    return f"{key} is not a key of a recipe: {advice}"


def _sentence(root: type[Section], error: Any) -> str:
    key, kind, context = dotted(root, error["loc"]), error["type"], error.get("ctx", {})
    got = f"not {error['input']!r}"
    match kind:
        case "extra_forbidden":
            return _unknown_key(root, key, error["input"])
        case "missing":
            fields = {name: field for name, field, _ in all_keys(root)}
            meaning = fields[key].description if key in fields else None
            return f"{key} is missing" + (f" ({meaning})" if meaning else "") + ": add it"
        case "union_tag_invalid":
            return f"{key}.kind is {context['tag']!r}: choose {context['expected_tags']}"
        case "union_tag_not_found":
            field = {name: field for name, field, _ in all_keys(root)}[key]
            kinds = ", ".join(repr(name) for section in sections_in(field.annotation) for name in kind_of(section))
            return f"{key}.kind is missing: choose {kinds}"
        case "value_error":
            return f"{key}: {context['error']}" if key else str(context["error"])
        case "string_pattern_mismatch":
            return (
                f"{key} is {error['input']!r}: use letters, digits, '.', '_' and '-', and start with a letter or digit"
            )
    if kind in WANTED:
        return f"{key or 'a recipe'} must be {WANTED[kind].format(**context)}, {got}"
    return f"{key} is {error['input']!r}: {error['msg']}"


def explain(root: type[Section], invalid: ValidationError) -> str:
    """Return one sentence for the first problem; an unknown key goes first, since it explains a missing one."""
    errors = sorted(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
    more = len(errors) - 1
    return _sentence(root, errors[0]) + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")
