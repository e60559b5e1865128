// The 16 values of E2M1, doubled: 0 1 2 3, 4 6 8 12, 0 -1 -2 -3, -4 -6 -8 -12, first in the lowest byte.

const E2M1 = vec4<u32>(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
