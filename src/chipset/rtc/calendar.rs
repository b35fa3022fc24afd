//! Seconds since the Unix epoch to and from the time registers.

use super::CENTURY_REGISTER;

/// The registers that hold the time.
pub(super) const TIME_REGISTERS: [u8; 8] = [0, 2, 4, 6, 7, 8, 9, CENTURY_REGISTER];

const PM: u8 = 0x80;

/// A date of the Gregorian calendar and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
}

/// Days from 1970-01-01 to a date. Years run from March, so that leap days come last.
fn days_from_date(year: i64, month: u8, day: u8) -> i64 {
    let (year, month) =
        if month > 2 { (year, i64::from(month) - 3) } else { (year - 1, i64::from(month) + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + i64::from(day) - 1 - 719_468
}

impl DateTime {
    pub(super) fn from_seconds(seconds: i64) -> Self {
        let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // 400 years have 146097 days; the estimate is at most one year off.
        let mut year = 1970 + (days * 400).div_euclid(146_097);
        while days_from_date(year, 1, 1) > days {
            year -= 1;
        }
        while days_from_date(year + 1, 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days_from_date(year, month + 1, 1) <= days {
            month += 1;
        }
        Self {
            year,
            month,
            day: (days - days_from_date(year, month, 1) + 1) as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
        }
    }

    /// `None` when there is no such date or time.
    pub(super) fn to_seconds(self) -> Option<i64> {
        if self.hour > 23 || self.minute > 59 || self.second > 59 || !(1..=12).contains(&self.month) {
            return None;
        }
        let first = days_from_date(self.year, self.month, 1);
        let days = first + i64::from(self.day) - 1;
        let back = Self::from_seconds(days * 86_400);
        let exists = (back.month, back.day) == (self.month, self.day);
        exists.then(|| {
            days * 86_400 + i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
        })
    }

    /// Registers and their values, in the order of [`TIME_REGISTERS`].
    pub(super) fn encode(&self, binary: bool, hours_24: bool) -> [(u8, u8); 8] {
        let number = |n: u8| if binary { n } else { n / 10 * 16 + n % 10 };
        let hour = if hours_24 {
            number(self.hour)
        } else {
            number((self.hour + 11) % 12 + 1) | if self.hour >= 12 { PM } else { 0 }
        };
        let year = self.year.rem_euclid(100) as u8;
        let century = self.year.div_euclid(100).rem_euclid(100) as u8;
        let values = [
            number(self.second),
            number(self.minute),
            hour,
            number(self.weekday),
            number(self.day),
            number(self.month),
            number(year),
            number(century),
        ];
        std::array::from_fn(|n| (TIME_REGISTERS[n], values[n]))
    }

    /// From the registers; `None` when a digit or an hour is none. The weekday is not looked at.
    pub(super) fn decode(register: impl Fn(u8) -> u8, binary: bool, hours_24: bool) -> Option<Self> {
        let number = |value: u8| match (binary, value >> 4, value & 15) {
            (true, ..) => Some(value),
            (false, tens @ 0..=9, ones @ 0..=9) => Some(tens * 10 + ones),
            _ => None,
        };
        let hour = register(4);
        let hour = if hours_24 {
            number(hour)?
        } else {
            let twelve = number(hour & !PM).filter(|hour| (1..=12).contains(hour))?;
            twelve % 12 + if hour & PM != 0 { 12 } else { 0 }
        };
        Some(Self {
            second: number(register(0))?,
            minute: number(register(2))?,
            hour,
            day: number(register(7))?,
            month: number(register(8))?,
            year: i64::from(number(register(CENTURY_REGISTER))?) * 100 + i64::from(number(register(9))?),
            weekday: 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8, weekday: u8) -> DateTime {
        DateTime { year, month, day, hour, minute, second, weekday }
    }

    #[test]
    fn known_dates() {
        for (seconds, expected) in [
            (0, date(1970, 1, 1, 0, 0, 0, 5)),
            (951_782_400, date(2000, 2, 29, 0, 0, 0, 3)),
            (1_709_251_199, date(2024, 2, 29, 23, 59, 59, 5)),
            (1_709_251_200, date(2024, 3, 1, 0, 0, 0, 6)),
            (4_107_542_400, date(2100, 3, 1, 0, 0, 0, 2)),
            (-1, date(1969, 12, 31, 23, 59, 59, 4)),
        ] {
            assert_eq!(DateTime::from_seconds(seconds), expected);
            assert_eq!(expected.to_seconds(), Some(seconds));
        }
    }

    #[test]
    fn every_day_of_five_centuries_comes_back() {
        for day in -40_000..150_000i64 {
            let time = DateTime::from_seconds(day * 86_400 + 4711);
            assert_eq!(time.to_seconds(), Some(day * 86_400 + 4711));
        }
        for extreme in [i64::MIN / 1_000_000_000, i64::MAX / 1_000_000_000] {
            assert_eq!(DateTime::from_seconds(extreme).to_seconds(), Some(extreme));
        }
    }

    #[test]
    fn dates_that_do_not_exist() {
        assert_eq!(date(2023, 2, 29, 0, 0, 0, 1).to_seconds(), None);
        assert_eq!(date(2023, 4, 31, 0, 0, 0, 1).to_seconds(), None);
        assert_eq!(date(2023, 0, 1, 0, 0, 0, 1).to_seconds(), None);
        assert_eq!(date(2023, 13, 1, 0, 0, 0, 1).to_seconds(), None);
        assert_eq!(date(2023, 1, 0, 0, 0, 0, 1).to_seconds(), None);
        assert_eq!(date(2023, 1, 1, 24, 0, 0, 1).to_seconds(), None);
        assert_eq!(DateTime::decode(|_| 0x1a, false, true), None);
    }

    #[test]
    fn formats() {
        let afternoon = date(2024, 12, 31, 23, 59, 58, 3);
        let values = |time: DateTime, binary, hours_24| time.encode(binary, hours_24).map(|(_, v)| v);
        assert_eq!(values(afternoon, false, true), [0x58, 0x59, 0x23, 3, 0x31, 0x12, 0x24, 0x20]);
        assert_eq!(values(afternoon, true, true), [58, 59, 23, 3, 31, 12, 24, 20]);
        assert_eq!(values(afternoon, false, false)[2], 0x91);
        for hour in 0..24 {
            for (binary, hours_24) in [(false, false), (false, true), (true, false), (true, true)] {
                let time = DateTime { hour, weekday: 1, ..afternoon };
                let registers = time.encode(binary, hours_24);
                let read = |r: u8| registers.iter().find(|(n, _)| *n == r).unwrap().1;
                assert_eq!(DateTime::decode(read, binary, hours_24), Some(time));
            }
        }
    }
}
