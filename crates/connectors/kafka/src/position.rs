//! [`Position`]: where a record is.

use std::fmt;
use std::str::FromStr;

/// The position of a record: the text that `Context::position` returns for a message from Kafka,
/// parsed.
///
/// ```
/// use brigade_kafka::Position;
/// let position: Position = "shop.orders[3]@17".parse()?;
/// assert_eq!((position.topic.as_str(), position.partition, position.offset), ("shop.orders", 3, 17));
/// assert_eq!(position.to_string(), "shop.orders[3]@17");
/// # Ok::<_, brigade_kafka::NoPosition>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset in it.
    pub offset: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, offset } = self;
        write!(f, "{topic}[{partition}]@{offset}")
    }
}

/// A text that is not a [`Position`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoPosition(String);

impl fmt::Display for NoPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected a position on Kafka such as `orders[3]@17`, found {:?}", self.0)
    }
}

impl std::error::Error for NoPosition {}

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let parts = || {
            let (place, offset) = text.rsplit_once("]@")?;
            let (topic, partition) = place.rsplit_once('[')?;
            let (partition, offset) = (partition.parse().ok()?, offset.parse().ok()?);
            Some(Self { topic: topic.to_owned(), partition, offset })
        };
        parts().ok_or_else(|| NoPosition(text.to_owned()))
    }
}
