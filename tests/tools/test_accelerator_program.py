"""The bytes of a program, counted by hand: tests/benchmarks/accelerator_program.py."""

from tests.benchmarks.accelerator_program import moved

PROGRAM = """HloModule m

%of_slices (p0: bf16[8,6], p1: f32[4]) -> f32[4] {
  %p0 = bf16[8,6]{1,0} parameter(0)
  %n = bf16[8,6]{1,0} negate(%p0)
  %s = bf16[4,1]{1,0} slice(%n), slice={[0:4], [0:1]}
  %b = bf16[4]{0} bitcast(%s)
  %c = f32[4]{0} convert(%b)
  %p1 = f32[4]{0} parameter(1)
  ROOT %a = f32[4]{0} add(%c, %p1)
}

%in_place (q0: f32[100], q1: f32[10]) -> f32[100] {
  %q0 = f32[100]{0} parameter(0)
  %q1 = f32[10]{0} parameter(1)
  %zero = s32[] constant(0)
  ROOT %u = f32[100]{0} dynamic-update-slice(%q0, %q1, %zero)
}

%beside (r0: f32[2,3], r1: f32[2,1], r2: f32[3]) -> f32[2,2] {
  %r2 = f32[3]{0} parameter(2)
  %rows = f32[2,3]{1,0} broadcast(%r2), dimensions={1}
  %r0 = f32[2,3]{1,0} parameter(0)
  %sum = f32[2,3]{1,0} add(%r0, %rows)
  %r1 = f32[2,1]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %u = f32[2,3]{1,0} dynamic-update-slice(%sum, %r1, %zero, %zero)
  ROOT %half = f32[2,2]{1,0} slice(%u), slice={[0:2], [0:2]}
}

ENTRY %main (x: bf16[8,6], y: f32[4], room: f32[100], made: f32[10], ...) -> f32[100] {
  %x = bf16[8,6]{1,0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %room = f32[100]{0} parameter(2)
  %made = f32[10]{0} parameter(3)
  %wide = f32[2,3]{1,0} parameter(4)
  %column = f32[2,1]{1,0} parameter(5)
  %row = f32[3]{0} parameter(6)
  %loop_add_fusion = f32[4]{0} fusion(%x, %y), kind=kLoop, calls=%of_slices
  %loop_slice_fusion = f32[2,2]{1,0} fusion(%wide, %column, %row), kind=kLoop, calls=%beside
  %matmul = (bf16[3,5]{1,0}, s8[7]{0}) custom-call(%x, %made), custom_call_target="__cublas$lt$matmul"
  ROOT %loop_update_fusion = f32[100]{0} fusion(%room, %made), kind=kLoop, calls=%in_place
}
"""


def test_bytes_of_a_program():
    """Loops: 4 of 48 numbers of x, negated and cut, y and the sum, 8 + 16 + 16; two thirds of what the sum needs, 4 of
    its 6 numbers, as a column of it is replaced, two thirds of that column, all it needs of the row, and the result,
    32 / 3 + 16 / 3 + 32 / 3 and 16; the update read and written, 40 + 40. The product's operands 96 + 40 and results
    30 + 7."""
    assert moved(PROGRAM) == {"__cublas$lt$matmul to bf16": [173, 1], "Loop fusion": [40 + 43 + 80, 3]}
