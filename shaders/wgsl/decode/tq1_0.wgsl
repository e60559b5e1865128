// TQ1_0: w = d (q - 1), five digits to base 3 per byte. Planes: of 8 groups 48 bytes and 4 bytes of digits, d.
//
// Groups 0..5 are the digits 0..5 of the first 32 bytes, groups 5 and 6 and the first half of 7 the digits of the other 16,
// and the second half of 7 the digits 0..4 of the 4 bytes.

#include "decode/common.wgsl"

// Digit of each of four bytes, `power` being 3 to its number: multiplied by it the byte loses the digits above, and
// three times what is left of it has the digit on top.
fn digits(bytes: u32, power: u32) -> u32 {
    let even = ((bytes & 0x00ff00ffu) * power) & 0x00ff00ffu;
    let odd = (((bytes >> 8u) & 0x00ff00ffu) * power) & 0x00ff00ffu;
    return (((3u * even) >> 8u) & 0x00ff00ffu) | ((3u * odd) & 0xff00ff00u);
}

fn four_digits(at: u32, power: u32) -> vec4<u32> {
    return vec4(
        digits(words[at], power),
        digits(words[at + 1u], power),
        digits(words[at + 2u], power),
        digits(words[at + 3u], power),
    );
}

fn power_of_3(n: u32) -> u32 {
    return select(select(1u, 3u, n == 1u), select(select(9u, 27u, n == 3u), 81u, n == 4u), n >= 2u);
}

fn decode(row: u32, g: u32) -> Group {
    let block = g >> 3u;
    let j = g & 7u;
    let at = row + 12u * block;
    let d = half_at(row + p.planes.y, block);
    var low: vec4<u32>;
    var high: vec4<u32>;
    if j < 5u {
        low = four_digits(at, power_of_3(j));
        high = four_digits(at + 4u, power_of_3(j));
    } else {
        low = four_digits(at + 8u, power_of_3(2u * j - 10u));
        if j < 7u {
            high = four_digits(at + 8u, power_of_3(2u * j - 9u));
        } else {
            let last = words[row + p.planes.x + block];
            high = vec4(digits(last, 1u), digits(last, 3u), digits(last, 9u), digits(last, 27u));
        }
    }
    return Group(low, high, vec2(d), vec2(-d));
}
