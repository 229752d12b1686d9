"""The profile of the bench: own times of nested operations, names from the program's text, a real program."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.tools.bench.profile import (
    direction_and_primitive,
    instructions,
    operation_seconds,
    profile,
    profile_lines,
    summarize,
)

TEXT = """
HloModule jit_step, entry_computation_layout={(f32[4,8]{1,0})->f32[4]{0}}
%fused (p: f32[4,8]) -> f32[4] {
  %p = f32[4,8]{1,0} parameter(0)
}
ENTRY %main.1 (x: f32[4,8]) -> f32[4] {
  %dot.1 = f32[4,8]{1,0} dot(%x, %x), metadata={op_name="jit(step)/jvp(Net)/conv1/dot_general" source_line=3}
  %fusion.2 = (f32[4]{0}, s32[2]{0}) fusion(%dot.1), kind=kLoop, metadata={op_name="jit(step)/transpose(jvp(Net))/max"}
  ROOT copy.3 = f32[4]{0} copy(%fusion.2)
}
"""


def event(name, begin, duration, thread=1, **more):
    return {"ph": "X", "pid": 7, "tid": thread, "ts": begin, "dur": duration, "args": {"hlo_op": name}} | more


def test_an_operation_has_its_own_time_without_what_it_calls():
    events = [
        event("inner", 20.0, 30.0),
        event("while", 10.0, 100.0),
        event("inner", 60.0, 10.0),
        event("innermost", 25.0, 5.0),
        event("inner", 110.0, 4.0),  # begins where `while` ended
        event("inner", 30.0, 8.0, thread=2),
        {"ph": "X", "pid": 7, "tid": 1, "ts": 0, "dur": 500, "name": "python"},
        event("not a span", 0.0, 9.0, ph="M"),
    ]
    found = operation_seconds(events)
    assert set(found) == {"inner", "while", "innermost"}
    assert found["while"] == (1, pytest.approx(60e-6))
    assert found["inner"] == (4, pytest.approx((25 + 10 + 4 + 8) * 1e-6))
    assert found["innermost"] == (1, pytest.approx(5e-6))


def test_kernels_that_overlap_take_the_time_from_one_end_to_the_other():
    found = operation_seconds([event("a", 0.0, 10.0), event("b", 9.0, 6.0), event("c", 15.0, 1.0)])
    assert {name: seconds for name, (_, seconds) in found.items()} == pytest.approx({"a": 9e-6, "b": 6e-6, "c": 1e-6})


def test_names_of_the_program():
    known = instructions(TEXT)
    assert known["dot.1"] == {"opcode": "dot", "shape": "f32[4,8]", "source": "jit(step)/jvp(Net)/conv1/dot_general"}
    assert known["fusion.2"]["shape"] == "(f32[4], s32[2])" and known["copy.3"]["source"] == ""
    assert direction_and_primitive(known["dot.1"]["source"]) == "forward dot_general"
    assert direction_and_primitive(known["fusion.2"]["source"]) == "backward max"
    assert direction_and_primitive("") == "unknown"


def test_sums_and_shares():
    seconds = {"dot.1": (4, 6.0), "fusion.2": (2, 3.0), "strange": (2, 1.0)}
    found = summarize(seconds, instructions(TEXT), steps=2)
    assert found["seconds_a_step"] == 5.0
    assert found["sources"] == {"forward dot_general": 3.0, "backward max": 1.5, "unknown": 0.5}
    first = found["operations"][0]
    assert (first["name"], first["calls"], first["seconds"], first["share"]) == ("dot.1", 2.0, 3.0, 0.6)
    assert "3000.00 ms  60.0 %  forward dot_general" in profile_lines(found)[1]
    assert profile_lines(summarize({}, {}, 1)) == ["  the profiler saw no operation on this platform"]


def test_a_real_program():
    product = jax.jit(lambda a: a @ a)
    a = jnp.ones((256, 256))
    compiled = product.lower(a).compile()
    found = profile(lambda: jax.block_until_ready(compiled(a)), compiled.as_text(), steps=3)
    assert found["seconds_a_step"] > 0 and found["steps"] == 3
    assert sum(o["share"] for o in found["operations"]) == pytest.approx(1)
    assert any("dot_general" in o["source"] and o["calls"] == 1 for o in found["operations"])
