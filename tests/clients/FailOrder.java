import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.message.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

/**
 * Reads an order on both topics in single-object encoding, then fails it: BROKERS ORDERS_TOPIC
 * STATUS_TOPIC ORDER_ID REASON.
 */
public class FailOrder {
    static Schema load(String name) throws Exception {
        return new Schema.Parser().parse(Files.readString(Path.of("schemas", name + ".avsc")));
    }

    public static void main(String[] args) throws Exception {
        String brokers = args[0], orders = args[1], statuses = args[2], orderId = args[3];
        var schemas = Map.of(orders, load("order_event"), statuses, load("order_status"));
        Map<String, Object> settings = Map.of("bootstrap.servers", brokers,
            "group.id", "java-" + orderId, "auto.offset.reset", "earliest");
        var missing = new HashSet<>(schemas.keySet());
        try (var consumer = new KafkaConsumer<>(
                settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(schemas.keySet());
            for (int second = 0; second < 30 && !missing.isEmpty(); second++)
                for (var message : consumer.poll(Duration.ofSeconds(1))) {
                    if (!orderId.equals(message.key()) || message.value() == null) continue;
                    var schema = schemas.get(message.topic());
                    System.out.println(
                        new BinaryMessageDecoder<GenericRecord>(GenericData.get(), schema)
                            .decode(message.value()));
                    missing.remove(message.topic());
                }
        }
        if (!missing.isEmpty()) throw new IllegalStateException("no message on " + missing);
        var schema = schemas.get(statuses);
        var status = new GenericRecordBuilder(schema).set("order_id", orderId)
            .set("status", "FAILED").set("reason", args[4]).set("source", "payments")
            .set("occurred_at", System.currentTimeMillis()).build();
        var encoder = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schema);
        var value = encoder.encode(status);
        var bytes = Arrays.copyOf(value.array(), value.remaining());
        try (var producer = new KafkaProducer<>(Map.of("bootstrap.servers", (Object) brokers),
                new StringSerializer(), new ByteArraySerializer())) {
            producer.send(new ProducerRecord<>(statuses, orderId, bytes)).get();
        }
    }
}
