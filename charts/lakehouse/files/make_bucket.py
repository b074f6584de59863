"""Makes the bucket of the MinIO that is there to evaluate with; waits for it to come up."""

import os
import sys
import time

import boto3
import botocore.exceptions

client = boto3.client("s3", endpoint_url=os.environ["ENDPOINT"], region_name="us-east-1")
for _ in range(150):
    try:
        client.create_bucket(Bucket=os.environ["BUCKET"])
        sys.exit(0)
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        sys.exit(0)
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        print(f"not yet: {error}", flush=True)
        time.sleep(2)
sys.exit("the store did not come up")
