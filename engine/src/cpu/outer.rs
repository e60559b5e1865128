//! Sums of outer products in f32: the one kernel of second-order quantization ([`crate::gptq`]).

use super::isa::{Isa, LANES};

/// A row-major matrix of which a kernel reads a part: its first element and the floats from row to row.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) first: *const f32,
    pub(crate) stride: usize,
}

/// `c[i][j] += sum over rows r of a[r][i] * b[r][j]`, for `i` in 0..m and 16 columns `j`.
///
/// # Safety
/// `a` and `b` have `n` rows of `m` and 16 floats, `c` has `m` rows of 16, at their strides; the CPU has the instruction
/// set.
#[inline(always)]
pub(crate) unsafe fn outer<S: Isa, const TILE: usize>(
    n: usize,
    a: Rows,
    b: Rows,
    (c, c_stride): (*mut f32, usize),
    m: usize,
) {
    // SAFETY: the caller's promises are the callees'.
    unsafe {
        let mut i = 0;
        while i + TILE <= m {
            tile::<S, TILE>(n, Rows { first: a.first.add(i), ..a }, b, (c.add(i * c_stride), c_stride));
            i += TILE;
        }
        while i < m {
            tile::<S, 1>(n, Rows { first: a.first.add(i), ..a }, b, (c.add(i * c_stride), c_stride));
            i += 1;
        }
    }
}

/// # Safety
/// As for [`outer`], with `m = TILE`.
#[inline(always)]
unsafe fn tile<S: Isa, const TILE: usize>(n: usize, a: Rows, b: Rows, (c, c_stride): (*mut f32, usize)) {
    // SAFETY: the caller's promise covers every address.
    unsafe {
        let mut sums = [S::f_splat(0.0); TILE];
        for r in 0..n {
            let (a, b) = (a.first.add(r * a.stride), S::f_load(b.first.add(r * b.stride)));
            for i in 0..TILE {
                sums[i] = S::f_fma(S::f_splat(*a.add(i)), b, sums[i]);
            }
        }
        for i in 0..TILE {
            let c = c.add(i * c_stride);
            S::f_store(c, S::f_add(S::f_load(c), sums[i]));
        }
    }
}

/// The kernel of an instruction set, with every access checked.
#[derive(Clone, Copy)]
pub(crate) struct Outer {
    pub(super) kernel: OuterFn,
}

/// [`outer`], compiled for an instruction set.
pub(crate) type OuterFn = unsafe fn(usize, Rows, Rows, (*mut f32, usize), usize);

impl Outer {
    /// The fastest of this CPU.
    pub(crate) fn best() -> Outer {
        Outer { kernel: super::IsaLevel::best(None).kernels().outer }
    }

    /// `c[i][j] += sum over r in 0..n of a[r][i] * b[r][j]` for `i` in 0..m and 16 columns `j`; each matrix is given by
    /// its first element on and the floats from row to row.
    ///
    /// Each sum is added up in the order of the rows.
    pub(crate) fn add(self, n: usize, a: (&[f32], usize), b: (&[f32], usize), c: (&mut [f32], usize), m: usize) {
        if n == 0 || m == 0 {
            return;
        }
        let needed = |rows: usize, stride: usize, width: usize| (rows - 1) * stride + width;
        assert!(a.0.len() >= needed(n, a.1, m) && b.0.len() >= needed(n, b.1, LANES), "rows outside a or b");
        assert!(c.0.len() >= needed(m, c.1, LANES), "rows outside c");
        let rows = |x: (&[f32], usize)| Rows { first: x.0.as_ptr(), stride: x.1 };
        // SAFETY: checked above; `kernels` has checked the instruction set.
        unsafe { (self.kernel)(n, rows(a), rows(b), (c.0.as_mut_ptr(), c.1), m) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::IsaLevel;

    #[test]
    fn every_instruction_set_adds_the_products() {
        let number = |i: usize| ((i * 7919 + 13) % 257) as f32 / 64.0 - 2.0;
        for level in IsaLevel::ALL.into_iter().filter(|level| level.is_available()) {
            let outer = Outer { kernel: level.kernels().outer };
            for (n, m) in [(0, 3), (1, 1), (5, 16), (33, 19), (64, 7)] {
                let (sa, sb, sc) = (m + 2, LANES + 3, LANES + 1);
                let a: Vec<f32> = (0..n * sa).map(number).collect();
                let b: Vec<f32> = (0..n * sb).map(|i| number(i + 5)).collect();
                let start: Vec<f32> = (0..m * sc).map(|i| number(i + 9)).collect();
                let mut c = start.clone();
                outer.add(n, (&a, sa), (&b, sb), (&mut c, sc), m);
                for (at, got) in c.iter().enumerate() {
                    let (i, j) = (at / sc, at % sc);
                    let products = (0..n).map(|r| f64::from(a[r * sa + i]) * f64::from(b[r * sb + j]));
                    let sum: f64 = if j < LANES { products.sum() } else { 0.0 };
                    let want = f64::from(start[at]) + sum;
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{}: {n} {m} {at}: {got} {want}", level.name());
                }
            }
        }
    }
}
