import io.apicurio.registry.serde.SerdeConfig;
import io.apicurio.registry.serde.avro.*;
import java.nio.file.*;
import java.time.Duration;
import java.util.*;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

/**
 * Reads an order on both topics, and fails it, with the schemas of a registry: BROKERS REGISTRY
 * ORDERS_TOPIC STATUS_TOPIC ORDER_ID. It prints each message of the order as JSON. It writes with a
 * schema that has one more field.
 */
public class Registered {
    public static void main(String[] args) throws Exception {
        String brokers = args[0], orders = args[2], statuses = args[3], orderId = args[4];
        Map<String, Object> registry = Map.of(
            SerdeConfig.REGISTRY_URL, args[1],
            SerdeConfig.ENABLE_CONFLUENT_ID_HANDLER, true,
            SerdeConfig.USE_ID, "contentId",
            SerdeConfig.ENABLE_HEADERS, false,
            SerdeConfig.AUTO_REGISTER_ARTIFACT, true);
        var reading = new HashMap<String, Object>(registry);
        reading.putAll(Map.of("bootstrap.servers", brokers, "group.id", "java-" + orderId,
            "auto.offset.reset", "earliest", "key.deserializer", StringDeserializer.class,
            "value.deserializer", AvroKafkaDeserializer.class));
        var missing = new HashSet<>(Set.of(orders, statuses));
        try (var consumer = new KafkaConsumer<String, GenericRecord>(reading)) {
            consumer.subscribe(List.of(orders, statuses));
            for (int second = 0; second < 30 && !missing.isEmpty(); second++)
                for (var message : consumer.poll(Duration.ofSeconds(1))) {
                    if (!orderId.equals(message.key())) continue;
                    System.out.println(message.value());
                    missing.remove(message.topic());
                }
        }
        if (!missing.isEmpty()) throw new IllegalStateException("no message on " + missing);
        var file = Path.of("schemas/order_status.avsc");
        Schema own = new Schema.Parser().parse(Files.readString(file));
        var fields = new ArrayList<Schema.Field>();
        for (var field : own.getFields()) fields.add(new Schema.Field(field, field.schema()));
        fields.add(new Schema.Field("till", Schema.create(Schema.Type.STRING), null, "none"));
        Schema grown = Schema.createRecord(own.getName(), null, own.getNamespace(), false, fields);
        var status = new GenericRecordBuilder(grown).set("order_id", orderId)
            .set("status", "FAILED").set("reason", "by Java").set("source", "payments")
            .set("occurred_at", System.currentTimeMillis()).set("till", "7").build();
        var writing = new HashMap<String, Object>(registry);
        writing.putAll(Map.of("bootstrap.servers", brokers,
            "key.serializer", StringSerializer.class,
            "value.serializer", AvroKafkaSerializer.class));
        try (var producer = new KafkaProducer<String, GenericRecord>(writing)) {
            producer.send(new ProducerRecord<>(statuses, orderId, status)).get();
        }
    }
}
