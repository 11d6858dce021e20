"""Fine-tuning: what is learned (`objective`), from what (`folder`, `buckets`, `cache`, `data`), how (`loop`).

Each way of training is one function that reads top to bottom: `lora.train_lora` first.
"""
