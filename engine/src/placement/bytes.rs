//! Amounts of memory as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: read from `4GiB`, `500 MB`, `1.5G` or `1000`, and written as `93.8 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Bytes(pub u64);

/// Units, smallest first.
const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut units = UNITS.into_iter();
        let mut unit = units.next();
        while value >= 1024.0
            && let Some(next) = units.next()
        {
            value /= 1024.0;
            unit = Some(next);
        }
        write!(f, "{value:.1} {}iB", unit.unwrap_or('K'))
    }
}

impl FromStr for Bytes {
    type Err = String;

    /// `K`, `M`, `G`, `T` and `KiB` ... are powers of 1024, `KB` ... powers of 1000.
    fn from_str(text: &str) -> Result<Bytes, String> {
        let wrong = || format!("`{text}` is no amount of memory; write it as in 4GiB, 500MiB or 1.5G");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit = unit.trim().to_ascii_uppercase();
        let mut rest = unit.chars();
        let power = match rest.next().map(|c| (c, UNITS.iter().position(|u| *u == c))) {
            None | Some(('B', _)) => 0,
            Some((_, Some(power))) => power as i32 + 1,
            Some((_, None)) => return Err(wrong()),
        };
        let base: f64 = match (power, rest.as_str()) {
            (0, "") => 1.0,
            (1.., "" | "IB") => 1024.0,
            (1.., "B") => 1000.0,
            _ => return Err(wrong()),
        };
        let bytes = number * base.powi(power);
        // 2^63: more than any machine has, and exactly a float.
        if bytes < 9.223372036854776e18 { Ok(Bytes(bytes as u64)) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("12B", 12),
            ("4GiB", 4 << 30),
            ("500MiB", 500 << 20),
            ("1.5G", 3 << 29),
            ("2 gb", 2_000_000_000),
            ("1k", 1024),
            ("1tib", 1 << 40),
            (".5M", 1 << 19),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "1.2.3", "4XB", "4GiBs", "1e9", "inf", "9999999999T", "4 G B", "µ", "12Bi"] {
            let read = text.parse::<Bytes>();
            assert!(read.is_err(), "{text}: {read:?}");
        }
    }

    proptest! {
        /// What is written is read back, but for what its one decimal rounds away: 0.05 of at least 1.0.
        #[test]
        fn written_and_read(n in 0u64..1 << 50) {
            let read = Bytes(n).to_string().parse::<Bytes>().unwrap().0;
            prop_assert!(read.abs_diff(n) <= n / 20 + 1, "{n} {read}");
        }
    }
}
