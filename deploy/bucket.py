"""Make the object store's bucket where it is not there; retries while the store starts. Only with compose.s3.yaml."""

import os
import sys
import time

ATTEMPTS = 30


def main() -> int:
    """0 once the bucket is there."""
    import boto3  # from deploy/object-store.lock, not the project's own lock
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = os.environ["OBJECT_STORE_BUCKET"]
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    for _ in range(ATTEMPTS):
        try:
            if bucket not in {one["Name"] for one in store.list_buckets()["Buckets"]}:
                store.create_bucket(Bucket=bucket)
            return 0
        except (BotoCoreError, ClientError) as error:
            fault = error
            time.sleep(2)
    sys.stderr.write(f"the object store does not answer: {fault}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
