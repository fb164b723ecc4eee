//! The hours of the day in which a server serves.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A day; when clocks are put forward or back one is an hour shorter or longer, and the time is looked
/// at again before long.
const DAY: Duration = Duration::from_hours(24);

/// From one time of the day to another, on the next day where that is earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    begin: Duration,
    end: Duration,
}

impl Hours {
    /// Whether this time of the day is one of them.
    #[must_use]
    pub fn contains(self, time: Duration) -> bool {
        if self.begin < self.end {
            self.begin <= time && time < self.end
        } else {
            self.begin <= time || time < self.end
        }
    }

    /// How long it is from this time of the day until they begin or end.
    #[must_use]
    pub fn until_change(self, time: Duration) -> Duration {
        let until = |at: Duration| if at > time { at - time } else { at + DAY - time };
        until(self.begin).min(until(self.end))
    }
}

impl FromStr for Hours {
    type Err = InvalidHours;

    fn from_str(text: &str) -> Result<Self, InvalidHours> {
        let (begin, end) = text.split_once('-').ok_or(InvalidHours)?;
        let (begin, end) = (time(begin)?, time(end)?);
        if begin == end { Err(InvalidHours) } else { Ok(Self { begin, end }) }
    }
}

fn time(text: &str) -> Result<Duration, InvalidHours> {
    let (hours, rest) = text.trim().split_once(':').ok_or(InvalidHours)?;
    let (minutes, seconds) = rest.split_once(':').unwrap_or((rest, "0"));
    let number = |text: &str, below: u64| {
        let is_plain = text.len() <= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|number| is_plain && *number < below);
        number.ok_or(InvalidHours)
    };
    let minutes = number(hours, 24)? * 60 + number(minutes, 60)?;
    Ok(Duration::from_secs(minutes * 60 + number(seconds, 60)?))
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |time: Duration| {
            let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
            let text = format!("{:02}:{:02}", minutes / 60, minutes % 60);
            if seconds == 0 { text } else { format!("{text}:{seconds:02}") }
        };
        write!(f, "{}-{}", time(self.begin), time(self.end))
    }
}

/// A text that names no hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("two different times of the day, such as 22:00-07:00")]
pub struct InvalidHours;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Duration {
        time(text).unwrap()
    }

    #[test]
    fn hours_go_over_midnight_where_they_end_before_they_begin() {
        let night: Hours = "22:00-07:00".parse().unwrap();
        for (time, inside) in [
            ("21:59", false),
            ("22:00", true),
            ("23:59", true),
            ("00:00", true),
            ("06:59", true),
            ("07:00", false),
            ("12:00", false),
        ] {
            assert_eq!(night.contains(at(time)), inside, "{time}");
        }
        let office: Hours = "9:00-17:30".parse().unwrap();
        assert_eq!(
            [at("8:59"), at("9:00"), at("17:30")].map(|t| office.contains(t)),
            [false, true, false]
        );
        assert_eq!(office.to_string(), "09:00-17:30");
        let exact: Hours = "9:00:05-17:30".parse().unwrap();
        assert_eq!([at("9:00:04"), at("9:00:05")].map(|t| exact.contains(t)), [false, true]);
        assert_eq!(exact.to_string().parse(), Ok(exact));
    }

    #[test]
    fn it_is_known_when_they_begin_or_end_next() {
        let night: Hours = "22:00-07:00".parse().unwrap();
        let until = |text| night.until_change(at(text));
        assert_eq!(until("21:00"), Duration::from_hours(1));
        assert_eq!(until("22:00"), Duration::from_hours(9));
        assert_eq!(until("23:30"), Duration::from_mins(7 * 60 + 30));
        assert_eq!(until("07:00"), Duration::from_hours(15));
        for minute in 0..24 * 60 {
            let now = Duration::from_mins(minute);
            let then = Duration::from_secs((now + night.until_change(now)).as_secs() % 86_400);
            assert_ne!(night.contains(now), night.contains(then), "{minute}");
        }
    }

    #[test]
    fn what_is_no_hours_is_refused() {
        for text in [
            "",
            "22",
            "22:00",
            "22-7",
            "24:00-7:00",
            "7:60-8:00",
            "7:00-7:00",
            "7:00:60-8:00",
            "7:00:-8:00",
        ] {
            assert_eq!(text.parse::<Hours>(), Err(InvalidHours), "{text}");
        }
        assert_eq!("-1:00-2:00".parse::<Hours>(), Err(InvalidHours));
        assert_eq!("+1:00-2:00".parse::<Hours>(), Err(InvalidHours));
    }
}
