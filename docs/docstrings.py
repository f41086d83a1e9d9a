"""What the site's API pages need to know about this project's docstrings; read by mkdocstrings alone."""

import ast
import re

from griffe import Attribute, Class, Docstring, Extension, Module, Object, Parameters


class Docstrings(Extension):
    """`Example:` is a section, and the phrase of a setting `_<group>(default, doc)` is its docstring.

    A constructor's `**kwargs` is replaced by the arguments of the base class that take it.
    """

    def on_object(self, *, obj: Object, **_) -> None:
        """Names the section as griffe does."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)

    def on_attribute_instance(self, *, attr: Attribute, **_) -> None:
        """Takes the second argument of a `partial(setting, ...)`, and computes the first."""
        maker = str(attr.value).partition("(")[0]
        helper = attr.module.attributes.get(maker)
        if maker == "setting" or (helper and str(helper.value).startswith("partial(setting,")):
            default, doc = ast.parse(str(attr.value), mode="eval").body.args[:2]
            if isinstance(doc, ast.Constant):  # not an f-string, which has to be run
                attr.docstring = Docstring(doc.value, parent=attr)
            attr.value = _computed(ast.unparse(default), attr.parent.parent)

    def on_package(self, *, pkg: Module, **_) -> None:
        """Completes the constructors, once all classes are known."""
        for module in (pkg, *_modules(pkg)):
            for cls in module.classes.values():
                if not cls.is_alias:
                    _complete(cls)


def _modules(module: Module):
    for child in module.modules.values():
        if not child.is_alias:
            yield child
            yield from _modules(child)


def _computed(value: str, module: Module) -> str:
    """`value` as a number where it is one of the module's constants and numbers."""
    names = {name: str(constant.value) for name, constant in module.attributes.items()}
    try:
        for name in set(re.findall(r"[A-Z_0-9]+[A-Z]\w*", value)):
            value = value.replace(name, f"({names[name]})")
            value = f"{eval(value, {'__builtins__': {}}):.4g}"
    except (KeyError, NameError, SyntaxError, TypeError, ValueError):
        pass
    return value


def _complete(cls: Class) -> None:
    """Replaces `**kwargs` by the keyword arguments of the base."""
    own = cls.members.get("__init__")
    if own is None or own.is_alias or "kwargs" not in own.parameters:
        return
    bases = [base for base in cls.resolved_bases if "__init__" in base.members]
    if bases:
        _complete(bases[0])
        theirs = bases[0].members["__init__"].parameters
        given = {p.name for p in own.parameters} - {"kwargs"} | {"terms"}  # which the trainer sets
        keep = [p for p in own.parameters if p.name != "kwargs"]
        more = [p for p in theirs if p.kind.name == "keyword_only" or p.name == "kwargs"]
        own.parameters = Parameters(*keep, *(p for p in more if p.name not in given))
