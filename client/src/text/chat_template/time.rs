//! `strftime_now`: the date that some templates tell the model.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: u64 = 86_400;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The time in UTC by the directives of `strftime`. Those that templates have no use for stay as
/// they are; a time before 1970 counts as its beginning.
pub(super) fn format(time: SystemTime, format: &str) -> String {
    let time = Calendar::at(time);
    let mut text = String::with_capacity(format.len() + 16);
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = rest.next();
        // glibc's `%-d`: without the leading zero.
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        match directive {
            Some(directive) => time.write(&mut text, directive, padded),
            None => text.push('%'),
        }
    }
    text
}

/// A time in the Gregorian calendar.
struct Calendar {
    year: u64,
    /// From 1.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From 0, a Sunday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Calendar {
    fn at(time: SystemTime) -> Self {
        let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (days, second) = (seconds / SECONDS_PER_DAY, seconds % SECONDS_PER_DAY);
        let (year, month, day) = date(days);
        let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let before: u64 = lengths.iter().take(month - 1).sum();
        Self {
            year,
            month,
            day,
            day_of_year: before + day,
            // 1 January 1970 was a Thursday.
            weekday: usize::try_from((days + 4) % 7).unwrap_or(0),
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    fn write(&self, text: &mut String, directive: char, padded: bool) {
        let month = MONTHS.get(self.month - 1).copied().unwrap_or_default();
        let weekday = WEEKDAYS.get(self.weekday).copied().unwrap_or_default();
        let short = |name: &'static str| name.get(..3).unwrap_or(name);
        let (number, width) = match directive {
            'Y' => (self.year, 0),
            'y' => (self.year % 100, 2),
            'm' => (self.month as u64, 2),
            'd' => (self.day, 2),
            'j' => (self.day_of_year, 3),
            'H' => (self.hour, 2),
            'I' => ((self.hour + 11) % 12 + 1, 2),
            'M' => (self.minute, 2),
            'S' => (self.second, 2),
            'B' => return text.push_str(month),
            'b' => return text.push_str(short(month)),
            'A' => return text.push_str(weekday),
            'a' => return text.push_str(short(weekday)),
            'p' => return text.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            '%' => return text.push('%'),
            other => {
                return text.extend(if padded { vec!['%', other] } else { vec!['%', '-', other] });
            }
        };
        let width = if padded { width } else { 0 };
        write!(text, "{number:0width$}").expect("a String takes everything");
    }
}

/// Year, month and day of a day counted from 1 January 1970: `civil_from_days` of
/// <https://howardhinnant.github.io/date_algorithms.html>, for days that are not negative.
fn date(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let leaps = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Months count from March here, so that a leap day is the last day of a year.
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, usize::try_from(month).unwrap_or(1), day)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_written_as_python_writes_them() {
        // datetime.fromtimestamp(1709210096, timezone.utc).strftime(…)
        let leap_day = at(1_709_210_096);
        assert_eq!(format(leap_day, "%d %b %Y"), "29 Feb 2024");
        assert_eq!(format(leap_day, "%A, %B %-d; day %j"), "Thursday, February 29; day 060");
        assert_eq!(format(leap_day, "%Y-%m-%dT%H:%M:%S"), "2024-02-29T12:34:56");
        assert_eq!(format(leap_day, "%I:%M %p %a %y 100%%"), "12:34 PM Thu 24 100%");
        // datetime.fromtimestamp(951782399, timezone.utc)
        assert_eq!(format(at(951_782_399), "%-m/%-d/%Y %-H:%M %j"), "2/28/2000 23:59 059");
        assert_eq!(format(at(0), "%Y-%m-%d %I %p"), "1970-01-01 12 AM");
    }

    #[test]
    fn unknown_directives_stay_as_they_are() {
        assert_eq!(format(at(0), "%Q %-Q %"), "%Q %-Q %");
    }
}
