import java.util.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.MetricName;
import org.apache.kafka.common.serialization.*;

/**
 * Produces the messages that it reads from standard input. A line is one message: the codec, the
 * topic, the key, and the value in hexadecimal. Each message gets a header of zeros, so that the
 * codec has something to compress. Prints each codec with its compression ratio.
 */
public class Produce {
    public static void main(String[] args) throws Exception {
        Map<String, KafkaProducer<String, byte[]>> producers = new LinkedHashMap<>();
        for (var input = new Scanner(System.in); input.hasNextLine(); ) {
            String[] words = input.nextLine().split(" ");
            Map<String, Object> settings =
                Map.of("bootstrap.servers", args[0], "compression.type", words[0]);
            var producer = producers.computeIfAbsent(words[0], codec -> new KafkaProducer<>(
                settings, new StringSerializer(), new ByteArraySerializer()));
            byte[] value = HexFormat.of().parseHex(words[3]);
            var message = new ProducerRecord<>(words[1], words[2], value);
            message.headers().add("zeros", new byte[2048]);
            producer.send(message).get();
        }
        for (var entry : producers.entrySet()) {
            double ratio = Double.NaN;
            for (var metric : entry.getValue().metrics().entrySet()) {
                MetricName name = metric.getKey();
                if (name.group().equals("producer-metrics")
                        && name.name().equals("compression-rate-avg")) {
                    ratio = (Double) metric.getValue().metricValue();
                }
            }
            System.out.println(entry.getKey() + " " + ratio);
            entry.getValue().close();
        }
    }
}
