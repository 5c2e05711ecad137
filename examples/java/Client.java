import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.*;
import java.util.function.Predicate;
import org.apache.avro.Schema;
import org.apache.avro.generic.*;
import org.apache.avro.io.DecoderFactory;
import org.apache.avro.message.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

/** Places orders, hears of them, fails them and follows the stock: see examples/README.md. */
public class Client {
    static final ObjectMapper JSON = new ObjectMapper();
    static final HttpClient HTTP = HttpClient.newHttpClient();
    static final Map<Integer, Schema> REGISTERED = new HashMap<>();

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "place-by-kafka" -> placeByKafka(args[1], args[2], args[3], args[4], args[5]);
            case "place-by-http" -> placeByHttp(args[1], args[2], args[3]);
            case "fail" -> fail(args[1], args[2], args[3], args[4]);
            case "follow-levels" -> followLevels(args[1], args[2], Integer.parseInt(args[3]));
            default -> throw new IllegalArgumentException("no such command: " + args[0]);
        }
    }

    /** Places an order, and waits for its outcome. The reference is our own name of the order. */
    static void placeByKafka(
            String brokers, String requests, String statuses, String product, String quantity)
            throws Exception {
        var reference = "example-" + UUID.randomUUID();
        var schema = load("order_request");
        var lines = schema.getField("lines").schema();
        var line = new GenericRecordBuilder(lines.getElementType())
            .set("product_id", product).set("quantity", Long.parseLong(quantity)).build();
        var request = new GenericRecordBuilder(schema)
            .set("reference", reference).set("lines", List.of(line)).build();
        var message = new ProducerRecord<String, byte[]>(requests, encode(request));
        // With a key of its own, the request makes one order, however often it is produced.
        message.headers().add("Idempotency-Key", reference.getBytes());
        produce(brokers, message);
        read(brokers, statuses, "order_status", status -> {
            boolean isOurs = status != null && reference.equals(text(status.get("reference")));
            if (isOurs) System.out.println(status);
            return isOurs;
        });
    }

    /** Sends a request twice, as a client does whose connection broke. It makes one order. */
    static void placeByHttp(String url, String product, String quantity) throws Exception {
        var line = Map.of("product_id", product, "quantity", Long.parseLong(quantity));
        var order = JSON.writeValueAsString(Map.of("lines", List.of(line)));
        var request = HttpRequest.newBuilder(URI.create(url + "/v1/orders"))
            .header("Content-Type", "application/json").header("Prefer", "wait=10")
            .header("Idempotency-Key", UUID.randomUUID().toString())
            .POST(BodyPublishers.ofString(order)).build();
        for (int sent = 0; sent < 2; sent++) {
            var answer = HTTP.send(request, BodyHandlers.ofString());
            var shown = (ObjectNode) JSON.readTree(answer.body());
            shown.put("code", answer.statusCode()); // 409, for example: not enough stock
            var replayed = answer.headers().firstValue("Idempotent-Replayed").orElse("false");
            shown.put("replayed", replayed.equals("true"));
            System.out.println(shown);
        }
    }

    /** Reports that an order failed late, and waits until its stock is released. */
    static void fail(String brokers, String statuses, String orderId, String reason)
            throws Exception {
        var failed = new GenericRecordBuilder(load("order_status")).set("order_id", orderId)
            .set("status", "FAILED").set("reason", reason).set("source", "payments")
            .set("occurred_at", System.currentTimeMillis()).build();
        produce(brokers, new ProducerRecord<>(statuses, orderId, encode(failed)));
        read(brokers, statuses, "order_status", status -> {
            if (status == null || !orderId.equals(text(status.get("order_id")))) return false;
            System.out.println(status);
            return "RELEASED".equals(text(status.get("status")));
        });
    }

    /** Keeps the stock of each product. It ends after so many seconds without a message. */
    static void followLevels(String brokers, String topic, int seconds) throws Exception {
        var levels = new HashMap<String, GenericRecord>();
        var silent = new int[1];
        read(brokers, topic, "stock_level", level -> {
            silent[0] = level == null ? silent[0] + 1 : 0;
            // Messages may be repeated, and come out of order. The highest version is true.
            if (level != null) levels.merge(text(level.get("product_id")), level, (old, now) ->
                (long) now.get("version") > (long) old.get("version") ? now : old);
            return silent[0] == seconds;
        });
        levels.values().forEach(System.out::println);
    }

    /** Calls a handler for each value of a topic, from its beginning, until it returns true. */
    static void read(String brokers, String topic, String name, Predicate<GenericRecord> handler)
            throws Exception {
        // A service has one group for ever, and commits. So it reads each message once.
        Map<String, Object> settings = Map.of("bootstrap.servers", brokers,
            "group.id", "example-" + UUID.randomUUID(), "auto.offset.reset", "earliest");
        var schema = load(name);
        try (var consumer = new KafkaConsumer<>(
                settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(topic));
            while (true) {
                var messages = consumer.poll(Duration.ofSeconds(1));
                if (messages.isEmpty() && handler.test(null)) return;
                for (var message : messages) {
                    if (message.value() == null) continue; // a tombstone
                    if (handler.test(decode(schema, message.value()))) return;
                }
            }
        }
    }

    /** Returns once the brokers have the message. */
    static void produce(String brokers, ProducerRecord<String, byte[]> message) throws Exception {
        Map<String, Object> settings = Map.of("bootstrap.servers", brokers);
        try (var producer = new KafkaProducer<>(
                settings, new StringSerializer(), new ByteArraySerializer())) {
            producer.send(message).get();
        }
    }

    static Schema load(String name) throws Exception {
        return new Schema.Parser().parse(Files.readString(Path.of("schemas", name + ".avsc")));
    }

    static byte[] encode(GenericRecord value) throws Exception {
        var encoder = new BinaryMessageEncoder<GenericRecord>(GenericData.get(), value.getSchema());
        var bytes = encoder.encode(value);
        return Arrays.copyOf(bytes.array(), bytes.remaining());
    }

    /** Reads a value in Avro. stocklock writes one of two formats. */
    static GenericRecord decode(Schema schema, byte[] value) {
        try {
            if (value[0] != 0)
                return new BinaryMessageDecoder<GenericRecord>(GenericData.get(), schema)
                    .decode(value);
            // The framing of a schema registry: 00, id, datum.
            var writer = registered(ByteBuffer.wrap(value, 1, 4).getInt());
            var datum = DecoderFactory.get().binaryDecoder(value, 5, value.length - 5, null);
            return new GenericDatumReader<GenericRecord>(writer, schema).read(null, datum);
        } catch (Exception error) {
            throw new IllegalArgumentException("a value that cannot be read", error);
        }
    }

    /** The schema that the registry has under an id. */
    static Schema registered(int id) throws Exception {
        if (!REGISTERED.containsKey(id)) {
            var url = URI.create(System.getenv("SCHEMA_REGISTRY") + "/schemas/ids/" + id);
            var answer = HTTP.send(HttpRequest.newBuilder(url).build(), BodyHandlers.ofString());
            var schema = JSON.readTree(answer.body()).get("schema").asText();
            REGISTERED.put(id, new Schema.Parser().parse(schema));
        }
        return REGISTERED.get(id);
    }

    static String text(Object value) {
        return value == null ? null : value.toString();
    }
}
