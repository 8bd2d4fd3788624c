"""The words of the sample shop: departments, product types, materials, styles and brands, all invented."""

from __future__ import annotations

from typing import Final, NamedTuple


class ProductType(NamedTuple):
    """A leaf of the category tree.

    Attributes:
        name: as titles and categories show it.
        price: typical price of a mid-tier brand.
        materials: one of them stands in an item's title.
        variants: one of them ends an item's title.
        leads_to: names of the types that a shopper looks at next; not a symmetric relation.
        restock_days: after how many days a buyer needs it again; 0 for what lasts.
    """

    name: str
    price: float
    materials: tuple[str, ...]
    variants: tuple[str, ...]
    leads_to: tuple[str, ...]
    restock_days: int = 0


WOOD: Final = ("Oak", "Walnut", "Bamboo", "Birch", "Acacia", "Teak")
METAL: Final = ("Steel", "Brass", "Copper", "Aluminium", "Iron")
CERAMIC: Final = ("Stoneware", "Porcelain", "Terracotta", "Glass", "Marble")
FABRIC: Final = ("Linen", "Cotton", "Velvet", "Wool", "Jersey", "Corduroy")
LEATHER: Final = ("Leather", "Suede", "Canvas", "Vegan Leather", "Cork")
TECHNICAL: Final = ("Ripstop", "Merino", "Recycled Nylon", "Carbon", "Silicone")
SCENT: Final = ("Lavender", "Sandalwood", "Citrus", "Rose", "Cedar", "Sea Salt")
FLAVOUR: Final = ("Vanilla", "Dark Chocolate", "Hazelnut", "Ginger", "Berry")
ROAST: Final = ("Arabica", "Ethiopian", "Colombian", "Dark Roast", "Decaf")
MEAT: Final = ("Chicken", "Salmon", "Lamb", "Turkey", "Duck")
PLANT: Final = ("Monstera", "Fern", "Olive", "Cactus", "Fig", "Orchid")

COLOURS: Final = ("Black", "White", "Sage Green", "Navy", "Sand", "Terracotta Red", "Grey", "Mustard")
CLOTHES: Final = ("XS", "S", "M", "L", "XL")
SHOES: Final = ("EU 37", "EU 39", "EU 41", "EU 43", "EU 45")
BED: Final = ("Single", "Double", "King Size", "135 x 200 cm", "200 x 200 cm")
SMALL: Final = ("10 cm", "15 cm", "20 cm", "25 cm", "30 cm")
LARGE: Final = ("60 cm", "80 cm", "100 cm", "120 cm", "160 cm")
SETS: Final = ("Single", "Set of 2", "Set of 4", "Set of 6")
BOTTLES: Final = ("50 ml", "100 ml", "250 ml", "500 ml")
BAGS: Final = ("250 g", "500 g", "1 kg", "2.5 kg")
PACKS: Final = ("Pack of 3", "Pack of 6", "Pack of 12", "Family Pack")
MODELS: Final = ("Series 1", "Series 2", "Series 3", "Pro", "Lite", "Max")
LITRES: Final = ("0.5 L", "1 L", "5 L", "12 L", "20 L")

T = ProductType
TREE: Final[dict[str, dict[str, tuple[ProductType, ...]]]] = {
    "Home & Living": {
        "Furniture": (
            T("Desk", 240, WOOD, LARGE, ("Desk Chair", "Desk Lamp", "Monitor", "Notebook")),
            T("Desk Chair", 150, FABRIC, COLOURS, ("Cushion", "Mouse Mat")),
            T("Bookcase", 180, WOOD, LARGE, ("Vase", "Picture Frame", "House Plant")),
            T("Bedside Table", 90, WOOD, SMALL, ("Table Lamp", "Scented Candle")),
            T("Sofa", 690, FABRIC, COLOURS, ("Cushion", "Throw Blanket", "Floor Lamp")),
        ),
        "Bedding": (
            T("Duvet Cover", 60, FABRIC, BED, ("Fitted Sheet", "Pillow", "Throw Blanket")),
            T("Fitted Sheet", 30, FABRIC, BED, ("Pillow",)),
            T("Pillow", 28, FABRIC, SETS, ("Duvet Cover",)),
            T("Throw Blanket", 45, FABRIC, COLOURS, ("Cushion", "Scented Candle")),
        ),
        "Lighting": (
            T("Table Lamp", 55, CERAMIC, SMALL, ("Light Bulb", "Bedside Table")),
            T("Desk Lamp", 48, METAL, COLOURS, ("Light Bulb",)),
            T("Floor Lamp", 120, METAL, LARGE, ("Light Bulb", "Sofa")),
            T("Light Bulb", 9, ("Frosted", "Warm White", "Filament"), PACKS, ()),
        ),
        "Decoration": (
            T("Cushion", 22, FABRIC, COLOURS, ("Throw Blanket", "Rug")),
            T("Rug", 130, FABRIC, LARGE, ("Floor Lamp", "Cushion")),
            T("Vase", 26, CERAMIC, SMALL, ("Picture Frame", "Scented Candle")),
            T("Picture Frame", 18, WOOD, SMALL, ("Wall Print",)),
            T("Wall Print", 24, ("Canvas", "Giclée", "Letterpress"), SMALL, ("Picture Frame", "Vase")),
            T("Scented Candle", 16, SCENT, SETS, ("Vase", "Bath Salts"), 24),
        ),
    },
    "Kitchen & Dining": {
        "Cookware": (
            T("Frying Pan", 48, METAL, SMALL, ("Spatula", "Casserole", "Chopping Board")),
            T("Casserole", 95, METAL, LITRES, ("Oven Gloves", "Dinner Plates")),
            T("Chef's Knife", 65, METAL, SMALL, ("Chopping Board", "Knife Sharpener")),
            T("Knife Sharpener", 25, CERAMIC, MODELS, ()),
            T("Chopping Board", 28, WOOD, SMALL, ("Chef's Knife",)),
            T("Spatula", 9, WOOD, SETS, ("Mixing Bowl",)),
        ),
        "Tableware": (
            T("Dinner Plates", 42, CERAMIC, SETS, ("Cutlery Set", "Water Glasses", "Table Linen")),
            T("Cutlery Set", 55, METAL, SETS, ("Table Linen",)),
            T("Water Glasses", 24, CERAMIC, SETS, ("Carafe",)),
            T("Carafe", 22, CERAMIC, LITRES, ("Water Glasses",)),
            T("Table Linen", 26, FABRIC, COLOURS, ("Scented Candle", "Vase")),
        ),
        "Coffee & Tea": (
            T("Espresso Machine", 290, METAL, MODELS, ("Coffee Grinder", "Coffee Beans", "Milk Frother", "Mug")),
            T("Coffee Grinder", 85, METAL, MODELS, ("Coffee Beans", "Mug")),
            T("Milk Frother", 32, METAL, COLOURS, ("Coffee Beans",)),
            T("Mug", 12, CERAMIC, COLOURS, ("Loose Leaf Tea", "Biscuits")),
            T("Teapot", 38, CERAMIC, LITRES, ("Loose Leaf Tea", "Mug")),
            T("Coffee Beans", 13, ROAST, BAGS, ("Biscuits", "Mug"), 14),
            T("Loose Leaf Tea", 11, FLAVOUR, BAGS, ("Biscuits", "Teapot"), 18),
            T("Biscuits", 6, FLAVOUR, PACKS, ("Loose Leaf Tea",), 10),
        ),
        "Baking": (
            T("Mixing Bowl", 20, CERAMIC, LITRES, ("Cake Tin", "Baking Mix")),
            T("Cake Tin", 18, METAL, SMALL, ("Baking Mix", "Oven Gloves")),
            T("Oven Gloves", 15, FABRIC, COLOURS, ("Cake Tin",)),
            T("Baking Mix", 7, FLAVOUR, BAGS, ("Mixing Bowl",), 16),
        ),
    },
    "Fashion": {
        "Women": (
            T("Dress", 70, FABRIC, CLOTHES, ("Cardigan", "Handbag", "Sandals")),
            T("Blouse", 42, FABRIC, CLOTHES, ("Skirt", "Cardigan")),
            T("Skirt", 46, FABRIC, CLOTHES, ("Blouse", "Ankle Boots")),
            T("Cardigan", 58, FABRIC, CLOTHES, ("Scarf",)),
        ),
        "Men": (
            T("Shirt", 48, FABRIC, CLOTHES, ("Chinos", "Jumper")),
            T("Jumper", 62, FABRIC, CLOTHES, ("Scarf", "Chinos")),
            T("Chinos", 59, FABRIC, CLOTHES, ("Belt", "Trainers")),
            T("Jacket", 120, FABRIC, CLOTHES, ("Scarf", "Ankle Boots")),
        ),
        "Shoes": (
            T("Trainers", 85, LEATHER, SHOES, ("Shoe Care Kit", "Sports Socks")),
            T("Ankle Boots", 110, LEATHER, SHOES, ("Shoe Care Kit",)),
            T("Sandals", 55, LEATHER, SHOES, ("Sunglasses", "Sun Cream")),
            T("Shoe Care Kit", 14, SCENT, SETS, ()),
            T("Sports Socks", 11, TECHNICAL, PACKS, ("Trainers",)),
        ),
        "Accessories": (
            T("Scarf", 32, FABRIC, COLOURS, ("Gloves",)),
            T("Gloves", 26, LEATHER, CLOTHES, ("Scarf",)),
            T("Belt", 35, LEATHER, CLOTHES, ("Wallet",)),
            T("Wallet", 38, LEATHER, COLOURS, ()),
            T("Handbag", 95, LEATHER, COLOURS, ("Wallet", "Scarf", "Sunglasses")),
            T("Sunglasses", 60, METAL, COLOURS, ("Sun Cream",)),
        ),
    },
    "Beauty & Care": {
        "Skin": (
            T("Face Cream", 26, SCENT, BOTTLES, ("Face Serum", "Cleansing Gel"), 26),
            T("Face Serum", 34, SCENT, BOTTLES, ("Face Cream",), 28),
            T("Cleansing Gel", 15, SCENT, BOTTLES, ("Face Cream", "Face Cloths"), 21),
            T("Sun Cream", 18, SCENT, BOTTLES, ("Body Lotion",), 24),
            T("Face Cloths", 10, FABRIC, PACKS, ()),
        ),
        "Hair": (
            T("Shampoo", 11, SCENT, BOTTLES, ("Conditioner", "Hair Oil"), 20),
            T("Conditioner", 12, SCENT, BOTTLES, ("Shampoo", "Hair Oil"), 20),
            T("Hair Oil", 19, SCENT, BOTTLES, ("Hair Brush",)),
            T("Hair Brush", 17, WOOD, COLOURS, ("Hair Oil",)),
        ),
        "Bath & Body": (
            T("Body Lotion", 16, SCENT, BOTTLES, ("Hand Soap",), 22),
            T("Bath Salts", 13, SCENT, BAGS, ("Bath Towel", "Scented Candle"), 18),
            T("Hand Soap", 8, SCENT, BOTTLES, ("Body Lotion", "Soap Dish"), 14),
            T("Soap Dish", 12, CERAMIC, COLOURS, ("Hand Soap",)),
            T("Bath Towel", 24, FABRIC, SETS, ("Bath Salts", "Bath Mat")),
            T("Bath Mat", 22, FABRIC, COLOURS, ("Bath Towel",)),
        ),
    },
    "Electronics": {
        "Phones": (
            T("Smartphone", 520, CERAMIC, MODELS, ("Phone Case", "Screen Protector", "Power Bank", "Earbuds")),
            T("Phone Case", 22, LEATHER, MODELS, ("Screen Protector",)),
            T("Screen Protector", 12, ("Tempered", "Matt", "Privacy"), MODELS, ()),
            T("Power Bank", 36, METAL, COLOURS, ("Charging Cable",)),
            T("Charging Cable", 13, ("Braided", "Silicone", "Nylon"), LARGE, ()),
        ),
        "Audio": (
            T("Headphones", 140, LEATHER, COLOURS, ("Headphone Stand", "Charging Cable")),
            T("Headphone Stand", 28, WOOD, COLOURS, ()),
            T("Earbuds", 75, ("Silicone", "Foam", "Ceramic"), COLOURS, ("Charging Cable",)),
            T("Bluetooth Speaker", 85, FABRIC, MODELS, ("Power Bank",)),
            T("Turntable", 220, WOOD, MODELS, ("Bluetooth Speaker", "Record Brush")),
            T("Record Brush", 15, WOOD, SETS, ()),
        ),
        "Computing": (
            T("Laptop", 900, METAL, MODELS, ("Laptop Sleeve", "Mouse", "USB Hub", "Monitor")),
            T("Laptop Sleeve", 29, LEATHER, COLOURS, ("Mouse",)),
            T("Monitor", 230, METAL, MODELS, ("USB Hub", "Keyboard", "Desk Lamp")),
            T("Keyboard", 75, WOOD, COLOURS, ("Mouse", "Mouse Mat")),
            T("Mouse", 38, WOOD, COLOURS, ("Mouse Mat",)),
            T("Mouse Mat", 15, LEATHER, COLOURS, ()),
            T("USB Hub", 32, METAL, MODELS, ("Charging Cable",)),
        ),
        "Photo": (
            T("Camera", 480, METAL, MODELS, ("Camera Bag", "Memory Card", "Tripod", "Camera Strap")),
            T("Camera Bag", 60, LEATHER, COLOURS, ("Camera Strap",)),
            T("Camera Strap", 28, LEATHER, COLOURS, ()),
            T("Memory Card", 24, ("64 GB", "128 GB", "256 GB"), PACKS, ()),
            T("Tripod", 70, TECHNICAL, LARGE, ("Camera Bag",)),
        ),
    },
    "Sports & Outdoors": {
        "Camping": (
            T("Tent", 190, TECHNICAL, COLOURS, ("Sleeping Bag", "Camping Stove", "Headlamp")),
            T("Sleeping Bag", 95, TECHNICAL, BED, ("Sleeping Mat",)),
            T("Sleeping Mat", 55, TECHNICAL, LARGE, ("Headlamp",)),
            T("Camping Stove", 48, METAL, MODELS, ("Gas Cartridge", "Water Bottle")),
            T("Headlamp", 30, TECHNICAL, COLOURS, ()),
            T("Gas Cartridge", 7, METAL, PACKS, (), 16),
        ),
        "Cycling": (
            T("City Bike", 560, METAL, COLOURS, ("Bike Helmet", "Bike Lock", "Bike Light", "Pannier")),
            T("Bike Helmet", 58, TECHNICAL, CLOTHES, ("Bike Light",)),
            T("Bike Lock", 42, METAL, LARGE, ()),
            T("Bike Light", 25, METAL, SETS, ("Bike Lock",)),
            T("Pannier", 64, TECHNICAL, LITRES, ()),
        ),
        "Fitness": (
            T("Yoga Mat", 35, LEATHER, COLOURS, ("Yoga Block", "Water Bottle", "Leggings")),
            T("Yoga Block", 12, LEATHER, SETS, ()),
            T("Leggings", 44, TECHNICAL, CLOTHES, ("Sports Socks",)),
            T("Dumbbells", 50, METAL, SETS, ("Protein Powder", "Yoga Mat")),
            T("Protein Powder", 28, FLAVOUR, BAGS, ("Shaker", "Energy Bars"), 20),
            T("Shaker", 10, TECHNICAL, COLOURS, ("Protein Powder",)),
            T("Energy Bars", 14, FLAVOUR, PACKS, ("Protein Powder",), 11),
        ),
        "Hiking": (
            T("Hiking Boots", 130, LEATHER, SHOES, ("Hiking Socks", "Trekking Poles", "Rucksack")),
            T("Hiking Socks", 16, TECHNICAL, SHOES, ()),
            T("Rucksack", 90, TECHNICAL, LITRES, ("Water Bottle", "Rain Cover")),
            T("Rain Cover", 15, TECHNICAL, LITRES, ()),
            T("Trekking Poles", 45, TECHNICAL, LARGE, ()),
            T("Water Bottle", 20, METAL, LITRES, ("Energy Bars",)),
        ),
    },
    "Garden": {
        "Plants": (
            T("House Plant", 24, PLANT, SMALL, ("Plant Pot", "Plant Food", "Watering Can")),
            T("Plant Pot", 18, CERAMIC, SMALL, ("House Plant", "Potting Soil")),
            T("Plant Food", 8, PLANT, BOTTLES, ("Potting Soil",), 24),
            T("Potting Soil", 9, PLANT, LITRES, ("Plant Food",), 28),
            T("Watering Can", 25, METAL, LITRES, ("Plant Food",)),
        ),
        "Garden Tools": (
            T("Secateurs", 28, METAL, COLOURS, ("Garden Gloves",)),
            T("Hand Trowel", 14, WOOD, SETS, ("Garden Gloves", "Potting Soil")),
            T("Garden Gloves", 12, LEATHER, CLOTHES, ()),
        ),
        "Outdoor Living": (
            T("Garden Chair", 70, WOOD, COLOURS, ("Outdoor Cushion", "Parasol")),
            T("Outdoor Cushion", 25, FABRIC, COLOURS, ("Lantern",)),
            T("Parasol", 95, FABRIC, LARGE, ("Garden Chair",)),
            T("Lantern", 32, METAL, SMALL, ("Scented Candle",)),
            T("Barbecue", 180, METAL, MODELS, ("Charcoal", "Barbecue Tongs")),
            T("Barbecue Tongs", 16, METAL, SETS, ("Charcoal",)),
            T("Charcoal", 11, WOOD, BAGS, (), 14),
        ),
    },
    "Kids & Baby": {
        "Toys": (
            T("Building Blocks", 35, WOOD, PACKS, ("Train Set", "Toy Box")),
            T("Train Set", 48, WOOD, MODELS, ("Building Blocks",)),
            T("Plush Toy", 20, FABRIC, SMALL, ("Picture Book",)),
            T("Puzzle", 16, WOOD, ("100 Pieces", "500 Pieces", "1000 Pieces"), ("Board Game",)),
            T("Board Game", 30, WOOD, ("2 Players", "4 Players", "6 Players"), ("Puzzle",)),
            T("Picture Book", 13, ("Hardback", "Cloth", "Board"), COLOURS, ("Plush Toy",)),
            T("Toy Box", 45, WOOD, COLOURS, ()),
        ),
        "Baby": (
            T("Nappies", 19, FABRIC, PACKS, ("Baby Wipes",), 10),
            T("Baby Wipes", 9, SCENT, PACKS, ("Nappies",), 12),
            T("Baby Bottle", 14, CERAMIC, BOTTLES, ("Bottle Brush",)),
            T("Bottle Brush", 8, TECHNICAL, COLOURS, ()),
            T("Baby Blanket", 30, FABRIC, COLOURS, ("Plush Toy", "Baby Bottle")),
        ),
        "School": (
            T("School Bag", 65, TECHNICAL, LITRES, ("Pencil Case", "Lunch Box", "Water Bottle")),
            T("Pencil Case", 14, LEATHER, COLOURS, ("Notebook",)),
            T("Lunch Box", 18, METAL, COLOURS, ("Biscuits",)),
            T("Notebook", 9, LEATHER, PACKS, ("Pencil Case",)),
        ),
    },
    "Pets": {
        "Dogs": (
            T("Dog Bed", 55, FABRIC, LARGE, ("Dog Toy", "Dog Blanket")),
            T("Dog Blanket", 24, FABRIC, COLOURS, ()),
            T("Dog Collar", 22, LEATHER, CLOTHES, ("Dog Lead",)),
            T("Dog Lead", 26, LEATHER, LARGE, ("Dog Treats",)),
            T("Dog Toy", 12, FABRIC, SMALL, ("Dog Treats",)),
            T("Dog Food", 29, MEAT, BAGS, ("Dog Treats",), 14),
            T("Dog Treats", 8, MEAT, PACKS, ("Dog Food",), 12),
        ),
        "Cats": (
            T("Cat Tree", 85, WOOD, LARGE, ("Cat Toy", "Cat Bed")),
            T("Cat Bed", 38, FABRIC, COLOURS, ("Cat Toy",)),
            T("Cat Toy", 9, FABRIC, PACKS, ("Cat Food",)),
            T("Cat Food", 22, MEAT, PACKS, ("Cat Litter",), 13),
            T("Cat Litter", 14, WOOD, LITRES, ("Cat Food",), 15),
        ),
    },
}

# A style runs through all departments; a title shows it by any of its words.
STYLES: Final[tuple[tuple[str, ...], ...]] = (
    ("Nordic", "Scandinavian", "Hygge"),
    ("Coastal", "Nautical", "Seaside"),
    ("Botanical", "Floral", "Blossom"),
    ("Retro", "Vintage", "Seventies"),
    ("Industrial", "Loft", "Workshop"),
    ("Minimalist", "Plain", "Pure"),
    ("Boho", "Bohemian", "Folk"),
    ("Gothic", "Midnight", "Raven"),
    ("Kawaii", "Cute", "Pastel"),
    ("Alpine", "Mountain", "Summit"),
    ("Safari", "Savanna", "Jungle"),
    ("Galaxy", "Cosmic", "Starlight"),
    ("Rustic", "Farmhouse", "Country"),
    ("Art Deco", "Gatsby", "Gilded"),
    ("Tropical", "Palm Beach", "Island"),
    ("Urban", "Street", "City"),
)

# fmt: off
BRANDS: Final[tuple[str, ...]] = (
    "Aldermoor", "Anselle", "Bramwick", "Brindle & Co", "Caldora", "Castelune", "Corvanne", "Dapplewood", "Dunmarrow",
    "Elmstead", "Everlund", "Fablewell", "Fenwright", "Feyholt", "Galdren", "Glimmerby", "Hallowmere", "Harrowby Lane",
    "Hestrel", "Holloway Fox", "Ilvermoss", "Isenbro", "Jorvale", "Juniper Row", "Kelwyn", "Kestova", "Lark & Loom",
    "Lindqvale", "Lumenor", "Maravelle", "Marlowe Finch", "Mossgrove", "Nettlefield", "Norrhus", "Oakhaven Supply",
    "Olmira", "Orsette", "Pellwick", "Pinecrest Works", "Quillon", "Quorra", "Ravensby", "Rookwood", "Rosemont Mill",
    "Saltmarsh", "Selvara", "Sorrel & Sage", "Tamsin Grey", "Tavrik", "Thornbury", "Tinderbox", "Umberlane", "Valdrige",
    "Velloway", "Wexcombe", "Willowmark", "Wrenfield", "Yarrowby", "Zephyrine", "Zolana",
)
# fmt: on
