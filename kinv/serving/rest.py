"""Requests and answers of TensorFlow Serving's REST protocol, as bytes."""

import itertools

import numpy as np
import orjson
from google.protobuf import json_format

from kinv.serving import limits
from kinv.serving.signature import SIGNATURE

# Depth of nested lists, as NumPy's arrays have it; the deepest input has 4.
MOST_AXES = 64


def metadata_json(version, name):
    """Answer to `GET /v1/models/NAME/metadata`, with TensorFlow's names."""
    return orjson.dumps(
        {
            "model_spec": {
                "name": name,
                "signature_name": "",
                "version": str(version.number),
            },
            "metadata": {
                "signature_def": {
                    "signature_def": {
                        key: json_format.MessageToDict(
                            signature,
                            preserving_proto_field_name=True,
                            always_print_fields_with_no_presence=True,
                        )
                        for key, signature in version.signatures.items()
                    }
                }
            },
        },
        option=orjson.OPT_INDENT_2,
    )


def parse_request(body, version):
    """Reads a predict request in row or in column format.

    Args:
        body: bytes.
        version: `server_lib.Version`, whose signatures and inputs must be met.

    Returns:
        dict of float32 arrays, and whether they came in row format.

    Raises:
        limits.ServingError: INVALID_ARGUMENT, with the wording of
            TensorFlow Serving.
    """
    if not body:
        raise limits.invalid("JSON Parse error: The document is empty")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise limits.invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise limits.invalid(f"JSON Value: {_short(request)} Is not object")
    signature = request.get("signature_name", "")
    if not isinstance(signature, str):
        raise limits.invalid(
            f"JSON Value: {_short(request)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    if signature not in ("", *version.signatures):
        raise limits.invalid(
            f'Serving signature name: "{signature}" not found in signature def'
        )
    names = version.signatures[signature or SIGNATURE].inputs
    if not names:
        raise limits.invalid(
            f"Failed to get input map for signature: {signature}"
        )
    if "instances" in request and "inputs" in request:
        raise limits.invalid(
            f"JSON Value: {_short(request)} Not formatted correctly expecting "
            "only one of 'inputs' or 'instances' keys to exist"
        )
    if "instances" in request:
        return _from_rows(request["instances"], sorted(names)), True
    if "inputs" in request:
        return _from_columns(request["inputs"], sorted(names)), False
    raise limits.invalid("Missing 'inputs' or 'instances' key")


def _from_rows(instances, names):
    if not isinstance(instances, list):
        raise limits.invalid("Expecting 'instances' to be an list/array")
    if not instances:
        raise limits.invalid("No values in 'instances' array")
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise limits.invalid(
                f"Expecting object but got {_type(instance)} at item {index} "
                "of input list"
            )
        if sorted(instance) != names:
            raise limits.invalid(
                f"Failed to process element: {index} of 'instances' list. JSON "
                f"object: {_short(instance)} keys must be equal to: "
                f"{','.join(names)}"
            )
    return {
        name: to_array([instance[name] for instance in instances], name)
        for name in names
    }


def _from_columns(inputs, names):
    if not isinstance(inputs, dict):
        raise limits.invalid(
            "inputs is a plain value/list, but expecting an object as multiple "
            "input tensors required as per tensorinfo_map"
        )
    for name in names:
        if name not in inputs:
            raise limits.invalid(
                f"Missing named input: {name} in 'inputs' object."
            )
    return {name: to_array(inputs[name], name) for name in names}


def to_array(value, name):
    """Nested lists of numbers as a float32 array.

    NumPy would also take numbers written as strings, and booleans; TensorFlow
    Serving takes neither.

    Raises:
        limits.ServingError: INVALID_ARGUMENT if lists differ in length or
            depth, or hold anything but numbers.
    """
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MOST_AXES:
        raise limits.invalid(
            f"{name}: expected lists at most {MOST_AXES} deep, received "
            f"{len(shape)}"
        )
    values = [value]
    for level, size in enumerate(shape):
        for item in values:
            if not isinstance(item, list):
                raise limits.invalid(
                    f"{name}: JSON Value: {_short(item)} found at incorrect "
                    f"level: {level} in the JSON DOM. Expected at level: "
                    f"{len(shape)}"
                )
            if len(item) != size:
                raise limits.invalid(
                    f"{name}: Encountered list at unexpected size: {len(item)} "
                    f"at level: {level} expected size: {size}"
                )
        values = list(itertools.chain.from_iterable(values))
    if not set(map(type, values)) <= {int, float}:
        wrong = next(v for v in values if type(v) not in (int, float))
        raise limits.invalid(
            f"{name}: JSON Value: {_short(wrong)} Type: {_type(wrong)} is not "
            "of expected type: float"
        )
    with np.errstate(over="ignore"):
        return np.array(values, "float32").reshape(shape)


def _type(value):
    names = {dict: "Object", list: "Array", str: "String", bool: "Boolean"}
    return names.get(type(value), "Null" if value is None else "Number")


def _short(value):
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        # It reads what is nested deeper than what it writes.
        return "nested too deeply"
    return text if len(text) <= 80 else f"{text[:77]}..."


def write_response(outputs, by_row):
    """A dict of arrays as the answer's body."""
    if by_row:
        names = list(outputs)
        answer = {
            "predictions": [
                dict(zip(names, row, strict=True))
                for row in zip(*outputs.values(), strict=True)
            ]
        }
    else:
        answer = {"outputs": outputs}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
