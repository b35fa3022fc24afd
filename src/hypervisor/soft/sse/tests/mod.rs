//! The pure operations, and whole instructions, against the silicon.

mod faults;
mod instructions;
mod programs;
mod pure;

/// xorshift64*, seeded per test, so that a failure repeats.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    /// A value whose lanes are often at an edge.
    fn operand(&mut self) -> u128 {
        const EDGES: [u64; 8] = [
            0,
            !0,
            0x8000_8000_8000_8000,
            0x7fff_7fff_7fff_7fff,
            0x8080_8080_8080_8080,
            0x7f7f_7f7f_7f7f_7f7f,
            0x8000_0000_0000_0001,
            0x0001_0203_8485_8687,
        ];
        let pick = self.next();
        let (a, b) = (EDGES[pick as usize & 7], EDGES[pick as usize >> 3 & 7]);
        let edge = u128::from(a) << 64 | u128::from(b);
        match pick >> 6 & 3 {
            0 => edge,
            1 => {
                let mask = self.wide() & self.wide();
                edge & !mask | self.wide() & mask
            }
            _ => self.wide(),
        }
    }
}
