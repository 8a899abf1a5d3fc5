"""Reading YAML: plain values only, and no key twice."""

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader; a repeated key is an error instead of an override."""

    def construct_mapping(self, node, deep=False):
        lines: dict = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            same = (key.tag, key.value)
            line = key.start_mark.line + 1
            if same in lines:
                raise RepeatedKey(
                    f"key {key.value!r} is there twice, on line {lines[same]} and on line {line}: "
                    "remove one of them"
                )
            lines[same] = line
        return super().construct_mapping(node, deep)


class RepeatedKey(yaml.YAMLError):
    """A mapping holds a key twice."""


def parse_yaml(text: str) -> object:
    """The plain values of a YAML text.

    Raises:
        yaml.YAMLError: for whatever is wrong with it.
    """
    try:
        return yaml.load(text, _Loader)  # _Loader is a SafeLoader
    except yaml.YAMLError:
        raise
    # PyYAML's constructors let these through, for dates that do not exist, wrong explicit tags,
    # and text nested too deeply.
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise yaml.YAMLError(f"a value that can not be read ({error})") from None
