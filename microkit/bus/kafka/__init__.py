"""``kafka://``: the bus on Apache Kafka and what speaks its protocol. Needs the extra ``kafka``."""

from microkit.errors import MissingExtra

try:
    import confluent_kafka as _client  # noqa: F401  asked for here, so that the error names the extra
except ImportError as error:
    if error.name == "confluent_kafka":
        raise MissingExtra("kafka://", "kafka") from error
    raise

from microkit.bus.kafka.bus import KafkaBus
from microkit.bus.kafka.options import KafkaOptions

__all__ = ["KafkaBus", "KafkaOptions"]
