//! Every operation against the silicon this test runs on: results and flags.
#![allow(unsafe_code)]

mod sse;
mod transcendental;
mod x87;

/// `n` random cases, times `CC_FP_SCALE` where that is set.
fn cases(n: u64) -> u64 {
    n * std::env::var("CC_FP_SCALE").ok().and_then(|v| v.parse().ok()).unwrap_or(1)
}

/// A small seeded generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
