//! A key's rotation policy: what it may say, and when something is due.
//!
//! Must never see: the database, keys.
//!
//! Invariant: a [`RotationPolicy`] that [`RotationPolicy::checked`] let through has at most one Rotate and exactly one
//! Notify, no rotation sooner than 7 days, and no version that lives shorter than 28.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};

/// Azure's default for the notice before a version expires.
const DEFAULT_NOTICE: &str = "P30D";
/// A version lives at least so long (days).
const LEAST_LIFE: i64 = 28;
/// A rotation is at least so far from the creation, and from the expiry (days).
const LEAST_ROTATION: i64 = 7;
/// Longer is no duration anybody means.
const MAX_TEXT: usize = 32;
const MOST_DAYS: i64 = 100 * 365;

/// An ISO 8601 duration of whole days, weeks, months or years: `P90D`, `P1Y6M`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Period(String);

impl Period {
    /// From its text.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        let period = Self(text.to_owned());
        if text.len() <= MAX_TEXT && period.span().is_some() && (1..=MOST_DAYS).contains(&period.days()) {
            return Ok(period);
        }
        let shown: String = text.chars().take(MAX_TEXT).flat_map(char::escape_debug).collect();
        Err(bad(format!("duration: found \"{shown}\", allowed ISO 8601 of days to years, as P90D or P1Y6M")))
    }

    /// The text, as it came.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Days and more only; a span of hours is no policy for a key.
    fn span(&self) -> Option<Span> {
        let span = jiff::fmt::temporal::SpanParser::new().parse_span(&self.0).ok()?;
        let clock = [
            i64::from(span.get_hours()),
            span.get_minutes(),
            span.get_seconds(),
            span.get_milliseconds(),
            span.get_microseconds(),
            span.get_nanoseconds(),
        ];
        (!span.is_negative() && clock.iter().all(|n| *n == 0)).then_some(span)
    }

    /// For comparison of one period with another: a month counts 30 days, a year 365.
    fn days(&self) -> i64 {
        self.span().map_or(0, |s| {
            let (years, months) = (i64::from(s.get_years()), i64::from(s.get_months()));
            years * 365 + months * 30 + i64::from(s.get_weeks()) * 7 + i64::from(s.get_days())
        })
    }

    /// So long after a time, by the calendar of UTC.
    #[must_use]
    pub fn after(&self, unix: i64) -> Option<i64> {
        self.shifted(unix, false)
    }

    /// So long before it.
    #[must_use]
    pub fn before(&self, unix: i64) -> Option<i64> {
        self.shifted(unix, true)
    }

    fn shifted(&self, unix: i64, back: bool) -> Option<i64> {
        let from = Timestamp::from_second(unix).ok()?.to_zoned_datetime(TimeZone::UTC);
        let span = self.span()?;
        let there = if back { from.checked_sub(span) } else { from.checked_add(span) };
        Some(there.ok()?.timestamp().as_second())
    }
}

impl std::fmt::Display for Period {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// When an action is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// So long after the version was made.
    AfterCreate(Period),
    /// So long before it expires; never, if it does not.
    BeforeExpiry(Period),
}

impl Trigger {
    /// Whether it is due now, for a version of these times.
    #[must_use]
    pub fn is_due(&self, created: i64, expires: Option<i64>, now: i64) -> bool {
        self.due(created, expires).is_some_and(|due| due <= now)
    }

    /// When it is due for a version of these times, if ever.
    #[must_use]
    pub fn due(&self, created: i64, expires: Option<i64>) -> Option<i64> {
        match self {
            Self::AfterCreate(period) => period.after(created),
            Self::BeforeExpiry(period) => expires.and_then(|at| period.before(at)),
        }
    }

    /// Azure's name, and the duration.
    #[must_use]
    pub const fn parts(&self) -> (&'static str, &Period) {
        match self {
            Self::AfterCreate(period) => ("timeAfterCreate", period),
            Self::BeforeExpiry(period) => ("timeBeforeExpiry", period),
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyAction {
    /// Make the next version.
    Rotate,
    /// Say that the version will expire.
    Notify,
}

impl PolicyAction {
    /// Azure's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rotate => "Rotate",
            Self::Notify => "Notify",
        }
    }

    /// By its name, without regard to case.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn parse(text: &str) -> Result<Self> {
        [Self::Rotate, Self::Notify].into_iter().find(|a| a.name().eq_ignore_ascii_case(text)).ok_or_else(
            || {
                let shown: String = text.chars().take(32).flat_map(char::escape_debug).collect();
                bad(format!("action: found \"{shown}\", allowed Rotate, Notify"))
            },
        )
    }
}

/// One of a policy's actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifetimeAction {
    /// When.
    pub trigger: Trigger,
    /// What.
    pub action: PolicyAction,
}

/// What happens to a key by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationPolicy {
    /// At most one Rotate and one Notify.
    pub actions: Vec<LifetimeAction>,
    /// How long a version that is made by rotation is valid.
    pub expiry: Option<Period>,
    /// Unix seconds; `None` for the default policy.
    pub created: Option<i64>,
    /// Unix seconds; `None` for the default policy.
    pub updated: Option<i64>,
}

/// What a key has that was never given one: a notice 30 days before a version expires.
impl Default for RotationPolicy {
    fn default() -> Self {
        Self { actions: vec![default_notice()], expiry: None, created: None, updated: None }
    }
}

fn default_notice() -> LifetimeAction {
    LifetimeAction {
        trigger: Trigger::BeforeExpiry(Period(DEFAULT_NOTICE.to_owned())),
        action: PolicyAction::Notify,
    }
}

impl RotationPolicy {
    /// When the next version is made, if at all.
    #[must_use]
    pub fn trigger(&self, action: PolicyAction) -> Option<&Trigger> {
        self.actions.iter().find(|a| a.action == action).map(|a| &a.trigger)
    }

    /// The policy if it keeps the rules; without a notice it gets the default one, as at Azure.
    ///
    /// # Errors
    /// `InvalidInput`: which rule.
    pub fn checked(mut self) -> Result<Self> {
        for action in [PolicyAction::Rotate, PolicyAction::Notify] {
            let found = self.actions.iter().filter(|a| a.action == action).count();
            if found > 1 {
                return Err(bad(format!("found {found} {} actions, allowed 1", action.name())));
            }
        }
        let life = self.expiry.as_ref().map(Period::days);
        if let Some(days) = life.filter(|days| *days < LEAST_LIFE) {
            return Err(bad(format!("expiryTime: found {days} days, allowed P{LEAST_LIFE}D or more")));
        }
        for LifetimeAction { trigger, action } in &self.actions {
            let (name, period) = trigger.parts();
            let (least, who) = match action {
                PolicyAction::Rotate => (LEAST_ROTATION, "Rotate"),
                PolicyAction::Notify => (0, "Notify"),
            };
            if period.days() < least {
                return Err(bad(format!("{who} {name}: found {period}, allowed P{LEAST_ROTATION}D or more")));
            }
            if life.is_some_and(|life| period.days() > life - least) {
                let most = life.unwrap_or_default() - least;
                return Err(bad(format!(
                    "{who} {name}: found {period}, allowed at most P{most}D with this expiryTime"
                )));
            }
            if *action == PolicyAction::Rotate
                && life.is_none()
                && matches!(trigger, Trigger::BeforeExpiry(_))
            {
                return Err(bad(format!("Rotate {name}: found no expiryTime, allowed with one only")));
            }
        }
        self.actions.sort_by_key(|a| a.action == PolicyAction::Notify);
        if self.trigger(PolicyAction::Notify).is_none() {
            self.actions.push(default_notice());
        }
        Ok(self)
    }

    /// In Azure's words, without `id`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let actions: Vec<Value> = self
            .actions
            .iter()
            .map(|a| {
                let (name, period) = a.trigger.parts();
                json!({ "trigger": { name: period.as_str() }, "action": { "type": a.action.name() } })
            })
            .collect();
        let mut attributes = serde_json::Map::new();
        if let Some(expiry) = &self.expiry {
            attributes.insert("expiryTime".into(), expiry.as_str().into());
        }
        for (name, time) in [("created", self.created), ("updated", self.updated)] {
            if let Some(time) = time {
                attributes.insert(name.into(), time.into());
            }
        }
        json!({ "lifetimeActions": actions, "attributes": attributes })
    }

    /// From Azure's words: `lifetimeActions`, `attributes.expiryTime`. The rules are [`RotationPolicy::checked`]'s.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text).map_err(|e| bad(format!("found no JSON: {e}")))?;
        let actions = match &value["lifetimeActions"] {
            Value::Null => &Vec::new(),
            Value::Array(actions) if actions.len() <= 2 => actions,
            _ => return Err(bad("lifetimeActions: found something else, allowed a list of at most 2")),
        };
        let attributes = &value["attributes"];
        let time = |name: &str| attributes[name].as_i64();
        Ok(Self {
            actions: actions.iter().map(action_from).collect::<Result<_>>()?,
            expiry: period_from("attributes.expiryTime", &attributes["expiryTime"])?,
            created: time("created"),
            updated: time("updated"),
        })
    }
}

fn action_from(value: &Value) -> Result<LifetimeAction> {
    let kind = value["action"]["type"].as_str();
    let action =
        PolicyAction::parse(kind.ok_or_else(|| bad("action.type: found none, allowed Rotate, Notify"))?)?;
    let trigger = &value["trigger"];
    let after = period_from("timeAfterCreate", &trigger["timeAfterCreate"])?;
    let before = period_from("timeBeforeExpiry", &trigger["timeBeforeExpiry"])?;
    let trigger = match (after, before) {
        (Some(period), None) => Trigger::AfterCreate(period),
        (None, Some(period)) => Trigger::BeforeExpiry(period),
        _ => {
            return Err(bad("trigger: found none or both, allowed one of timeAfterCreate, timeBeforeExpiry"));
        }
    };
    Ok(LifetimeAction { trigger, action })
}

fn period_from(what: &str, value: &Value) -> Result<Option<Period>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Period::parse(text).map(Some),
        _ => Err(bad(format!("{what}: found something else, allowed an ISO 8601 duration as text"))),
    }
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("rotation policy: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_follow_the_calendar() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_second();
        let period = |text: &str| Period::parse(text).unwrap();
        for (from, text, to) in [
            ("2026-01-31T10:00:00Z", "P1M", "2026-02-28T10:00:00Z"),
            ("2024-02-29T00:00:00Z", "P1Y", "2025-02-28T00:00:00Z"),
            ("2026-11-25T23:59:59Z", "P90D", "2027-02-23T23:59:59Z"),
            ("2026-11-25T00:00:00Z", "P2W", "2026-12-09T00:00:00Z"),
        ] {
            assert_eq!(period(text).after(at(from)), Some(at(to)), "{from} + {text}");
        }
        assert_eq!(period("P30D").before(at("2026-03-31T00:00:00Z")), Some(at("2026-03-01T00:00:00Z")));
        let long = format!("P{}D", "9".repeat(40));
        for bad in
            ["", "P", "90D", "P0D", "-P90D", "P-90D", "PT1H", "P1DT1H", "90 days", "P1.5D", "P101Y", &long]
        {
            assert!(Period::parse(bad).is_err(), "{bad:?}");
        }
    }
}
