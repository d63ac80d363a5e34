"""The Python clients `PyRSMQ` and, for streams, `redis-py`, driven by lines of JSON: an operation and its
arguments in, what came of it out."""
import json
import sys

from redis import Redis
from rsmq import RedisSMQ

client = Redis(port=int(sys.argv[1]), decode_responses=True)
rsmq = RedisSMQ(client=client)

for line in sys.stdin:
    options = json.loads(line)
    operation = options.pop("op")
    try:
        if operation.startswith("x"):  # of streams
            answer = {"ok": getattr(client, operation)(*options.pop("args", []), **options)}
        else:
            answer = {"ok": getattr(rsmq, operation)(**options).execute()}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer, default=list), flush=True)
