"""The kernel log: reads /dev/kmsg and other text formats, and assembles records to messages."""
