"""A graph of ONNX is looked through before a runtime gets it: it holds its tensors itself, and only computes.

An exported file may come from anybody. A graph could name another file of this machine as the place of its tensors
(``external_data``), go round in circles (``Loop``), make terabytes of a number (``ConstantOfShape``), or ask for
operations of a library that is not here. None of it is in a file that ``pickglass export`` wrote. What is left can
still ask for more memory than there is: who judges with files of strangers sets the process a limit. The fields are
those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from pickglass.runtime.export_file import fields_of

__all__ = ["check_graph"]

_MOST_NODES = 100_000
_MOST_VALUES = 10_000_000  # of one tensor or attribute that are fields of their own
_GRAPH, _FUNCTIONS = 7, 25  # of ModelProto
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of GraphProto
_INPUT, _OPERATION, _ATTRIBUTE, _DOMAIN = 1, 4, 5, 7  # of NodeProto
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSES = 5, 6, 10, 11, (22, 23)  # of AttributeProto
_EXTERNAL, _LOCATION = 13, 14  # of TensorProto
_DOMAINS = (b"", b"ai.onnx", b"com.microsoft")
_GROWING = {
    *(b"ConstantOfShape", b"Range", b"OneHot", b"EyeLike", b"Bernoulli", b"Multinomial"),
    *(b"RandomNormal", b"RandomNormalLike", b"RandomUniform", b"RandomUniformLike"),
}
"""Operations that make much of little, or of nothing."""


def check_graph(content: bytes) -> None:
    """Check that a graph only computes with tensors of its own.

    Args:
        content: a serialised ``ModelProto``.

    Raises:
        ValueError: it does something else; the message says what.
    """
    graphs = 0
    for part in fields_of(memoryview(content)):
        if part.number == _FUNCTIONS:
            raise ValueError("it brings functions of its own")
        if part.number == _GRAPH:
            graphs += 1
            _check(part.value)
    if graphs != 1:
        raise ValueError(f"it has {graphs} graphs")


def _check(graph: memoryview) -> None:
    nodes = 0
    for field in fields_of(graph, most=4 * _MOST_NODES):
        if field.number == _NODE:
            nodes += 1
            if nodes > _MOST_NODES:
                raise ValueError(f"it has more than {_MOST_NODES} nodes")
            _check_node(field.value)
        elif field.number == _INITIALIZER:
            _check_tensor(field.value)
        elif field.number == _SPARSE:
            raise ValueError("it has sparse tensors")


def _check_node(node: memoryview) -> None:
    operation, inputs = b"", list[bytes]()
    for field in fields_of(node):
        if field.number == _OPERATION:
            operation = bytes(field.value)
        if field.number == _INPUT:
            inputs.append(bytes(field.value))
        if field.number == _DOMAIN and bytes(field.value) not in _DOMAINS:
            raise ValueError(f"it asks for operations of {bytes(field.value[:40])!r}")
        if field.number == _ATTRIBUTE:
            for inner in fields_of(field.value, most=_MOST_VALUES):
                if inner.number in (_SUBGRAPH, _SUBGRAPHS, *_SPARSES):
                    raise ValueError("it has a node with a graph of its own, such as a loop")
                if inner.number in (_TENSOR, _TENSORS):
                    _check_tensor(inner.value)
    if operation in _GROWING:
        raise ValueError(f"it has the operation {operation.decode()}")
    if operation == b"Concat" and len(set(inputs)) < len(inputs):  # a few dozen of them outgrow any memory
        raise ValueError("it joins a value with itself")


def _check_tensor(tensor: memoryview) -> None:
    for field in fields_of(tensor, most=_MOST_VALUES):
        if field.number == _EXTERNAL or (field.number == _LOCATION and bytes(field.value) != b"\0"):
            raise ValueError("it names another file as the place of a tensor")
