"""COCO's 80 category ids in the order of mmdet's labels."""

category_ids = [
    *range(1, 12),
    *range(13, 26),
    *(27, 28),
    *range(31, 45),
    *range(46, 66),
    *(67, 70),
    *range(72, 83),
    *range(84, 91),
]
