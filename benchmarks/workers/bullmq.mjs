// BullMQ with undici's connection pool, the fastest client Node has. Completed jobs are removed.
// Run from benchmarks/.env/node, where the packages are: node bullmq.mjs enqueue | work
import { Queue, Worker } from "bullmq";
import { Pool } from "undici";

const concurrency = Number(process.env.BENCH_CONCURRENCY ?? "64");
const url = new URL(process.env.BENCH_URL);
const redis = new URL(process.env.BENCH_REDIS);
const connection = { host: redis.hostname, port: Number(redis.port), maxRetriesPerRequest: null };

function body(number) {
  const fields = { id: number, status: "success", result: "" };
  const padding = 1024 - JSON.stringify(fields).length;
  fields.result = "lorem ipsum dolor sit amet ".repeat(Math.floor(padding / 27) + 1).slice(0, padding);
  return JSON.stringify(fields);
}

if (process.argv[2] === "enqueue") {
  const queue = new Queue("callbacks", { connection });
  const count = Number(process.env.BENCH_COUNT);
  const opts = { removeOnComplete: true, removeOnFail: false, attempts: 1 };
  for (let first = 0; first < count; first += 1000) {
    const jobs = [];
    for (let number = first; number < Math.min(first + 1000, count); number++) {
      jobs.push({ name: "send", data: { body: body(number) }, opts });
    }
    await queue.addBulk(jobs);
  }
  await queue.close();
} else {
  const pool = new Pool(url.origin, { connections: concurrency, pipelining: 1, keepAliveTimeout: 60_000 });
  const headers = { "content-type": "application/json" };
  const worker = new Worker(
    "callbacks",
    async (job) => {
      const answer = await pool.request({ path: url.pathname, method: "POST", headers, body: job.data.body });
      await answer.body.dump();
      if (answer.statusCode < 200 || answer.statusCode > 299) throw new Error(`HTTP ${answer.statusCode}`);
    },
    { connection, concurrency },
  );
  worker.on("error", (error) => console.error(error));
  process.on("SIGTERM", async () => {
    await worker.close(true);
    await pool.close();
    process.exit(0);
  });
}
