import java.nio.file.*;
import java.time.*;
import java.util.*;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.message.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

/**
 * Reads an order's messages on both topics, then reports that the order failed. Run it in the
 * project's folder.
 */
public class FailOrder {
    static Schema load(String name) throws Exception {
        return new Schema.Parser().parse(Files.readString(Path.of("schemas", name + ".avsc")));
    }

    /** Arguments: brokers, topic of orders, topic of statuses, order id, reason. */
    public static void main(String[] args) throws Exception {
        String brokers = args[0], orders = args[1], statuses = args[2];
        String orderId = args[3], reason = args[4];
        Map<String, Schema> schemas = Map.of(
            orders, load("order_event"), statuses, load("order_status"));
        Map<String, Object> settings = Map.of(
            "bootstrap.servers", brokers, "group.id", "example-" + orderId,
            "auto.offset.reset", "earliest", "enable.auto.commit", false);
        Set<String> missing = new HashSet<>(schemas.keySet());
        Instant deadline = Instant.now().plusSeconds(30);
        try (var consumer = new KafkaConsumer<>(
                settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(schemas.keySet());
            while (!missing.isEmpty() && Instant.now().isBefore(deadline)) {
                for (var message : consumer.poll(Duration.ofSeconds(1))) {
                    if (!orderId.equals(message.key()) || message.value() == null) continue;
                    Schema schema = schemas.get(message.topic());
                    var decoder =
                        new BinaryMessageDecoder<GenericRecord>(GenericData.get(), schema);
                    System.out.println(decoder.decode(message.value()));
                    missing.remove(message.topic());
                }
            }
        }
        if (!missing.isEmpty()) {
            throw new IllegalStateException("no message of the order on " + missing);
        }
        GenericRecord status = new GenericData.Record(schemas.get(statuses));
        status.put("order_id", orderId);
        status.put("status", "FAILED");
        status.put("reason", reason);
        status.put("source", "example");
        status.put("occurred_at", System.currentTimeMillis());
        var encoder =
            new BinaryMessageEncoder<GenericRecord>(GenericData.get(), schemas.get(statuses));
        var value = encoder.encode(status);
        byte[] bytes = new byte[value.remaining()];
        value.get(bytes);
        Map<String, Object> address = Map.of("bootstrap.servers", brokers);
        try (var producer = new KafkaProducer<>(
                address, new StringSerializer(), new ByteArraySerializer())) {
            producer.send(new ProducerRecord<>(statuses, orderId, bytes)).get();
        }
    }
}
