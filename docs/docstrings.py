"""What the site's API page needs to know about this project's docstrings; read by mkdocstrings alone."""

import ast
import re

from griffe import Attribute, Docstring, Extension, Object


class Docstrings(Extension):
    """`Example:` is a section, and the phrase of a `setting(default, doc, ...)` is its docstring."""

    def on_object(self, *, obj: Object, **_) -> None:
        """Names the section as griffe does."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **_) -> None:
        """Takes the second argument of `setting`."""
        if str(attr.value).startswith("setting("):
            call = ast.parse(str(attr.value), mode="eval").body
            default, doc = call.args[:2]
            if isinstance(doc, ast.Constant):  # not an f-string, which has to be run
                attr.docstring = Docstring(doc.value, parent=attr)
                attr.value = ast.unparse(default)
