"""The bytes of a program, counted by hand: tests/benchmarks/gpu_program.py."""

from tests.benchmarks.gpu_program import moved

PROGRAM = """HloModule m

%of_slices (p0: bf16[8,6], p1: f32[4]) -> f32[4] {
  %p0 = bf16[8,6]{1,0} parameter(0)
  %s = bf16[4,1]{1,0} slice(%p0), slice={[0:4], [0:1]}
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

ENTRY %main (x: bf16[8,6], y: f32[4], room: f32[100], made: f32[10]) -> f32[100] {
  %x = bf16[8,6]{1,0} parameter(0)
  %y = f32[4]{0} parameter(1)
  %room = f32[100]{0} parameter(2)
  %made = f32[10]{0} parameter(3)
  %loop_add_fusion = f32[4]{0} fusion(%x, %y), kind=kLoop, calls=%of_slices
  %matmul = (bf16[3,5]{1,0}, s8[7]{0}) custom-call(%x, %made), custom_call_target="__cublas$lt$matmul"
  ROOT %loop_update_fusion = f32[100]{0} fusion(%room, %made), kind=kLoop, calls=%in_place
}
"""


def test_bytes_of_a_program():
    """Loops: 4 of 48 numbers of x, y and the sum, 8 + 16 + 16; the update read and written, 40 + 40. The product's
    operands 96 + 40 and results 30 + 7."""
    assert moved(PROGRAM) == {"__cublas$lt$matmul to bf16": [173, 1], "Loop fusion": [120, 2]}
